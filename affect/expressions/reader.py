"""Images and the expressions of the faces in them: finding, cutting out, naming, explaining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affect.core.config import ConfigError
from affect.core.device import pick_device
from affect.expressions.config import PredictConfig
from affect.expressions.drawing import enlarge
from affect.expressions.explain import draw_heat, grad_cam
from affect.expressions.image_files import to_input
from affect.expressions.models import ExpressionModel, load_model
from affect.expressions.network_file import ModelCard, find_model
from affect.expressions.predict import Corners, FacePrediction, name_expressions, predict
from affect.faces.align import MARGIN, find_all_faces, straighten_face
from affect.faces.finders import FaceFinder, build_face_finder

_PENDING_BYTES = 150_000_000  # of images that wait for a batch of faces to be full

FoundFace = tuple[Corners, np.ndarray]
"""Where a face is in an image, and the face cut out: uint8 RGB [H, W, 3]."""


@dataclass(frozen=True)
class NamedImage:
    """An image and the faces in it."""

    name: str
    image: np.ndarray
    """uint8 RGB [H, W, 3]."""
    crops: list[np.ndarray]
    """uint8 RGB [H, W, 3] each: the faces as the network saw them."""
    faces: list[FacePrediction]

    def as_json(self) -> dict[str, Any]:
        """Return what is written into predictions.jsonl."""
        height, width = self.image.shape[:2]
        return {"name": self.name, "size": [width, height], "faces": [face.as_json() for face in self.faces]}


@dataclass
class ExpressionReader:
    """A network, and what finds the faces that it names the expressions of."""

    model: ExpressionModel
    card: ModelCard
    config: PredictConfig
    checkpoint: Path
    finder: FaceFinder | None
    """None: an image is one face, cut out already."""

    def read(self, images: Iterable[tuple[str, np.ndarray]]) -> Iterator[NamedImage]:
        """Yield every image (name, uint8 RGB [H, W, 3]) with its faces; faces of several share a batch."""
        waiting: list[tuple[str, np.ndarray, list[FoundFace]]] = []
        for name, image in images:
            waiting.append((name, image, self.find(image)))
            faces = sum(len(found) for _, _, found in waiting)
            if faces >= self.config.batch_size or sum(each[1].nbytes for each in waiting) >= _PENDING_BYTES:
                yield from self._name(waiting)
                waiting = []
        yield from self._name(waiting)

    def find(self, image: np.ndarray) -> list[FoundFace]:
        """Return the faces in an image, the largest first; the whole of it where it is one."""
        if self.finder is None:
            return [((0, 0, image.shape[1], image.shape[0]), image)]
        align = self.card.aligned if self.config.align is None else self.config.align
        found = []
        for box in find_all_faces(image, self.finder):
            left, top, right, bottom = box.corners(image, MARGIN)
            crop = straighten_face(image, box) if align else image[top:bottom, left:right]
            found.append((box.corners(image), crop))
        return found

    def explain(self, named: NamedImage) -> list[np.ndarray]:
        """Return for each face uint8 RGB [H, 2 W, 3]: the face, and what in it speaks for its likeliest class."""
        device = next(self.model.parameters()).device
        heats = []
        for crop, face in zip(named.crops, named.faces, strict=True):
            likeliest = int(np.argmax(list(face.probabilities.values())))
            image = to_input(crop, self.card.input)[None].to(device)
            (heat,) = grad_cam(self.model, image, torch.tensor([likeliest]))
            heats.append(draw_heat(enlarge(crop)[0], heat))
        return heats

    def _name(self, waiting: Sequence[tuple[str, np.ndarray, list[FoundFace]]]) -> Iterator[NamedImage]:
        faces = [face for _, _, found in waiting for face in found]
        config, crops = self.config, [crop for _, crop in faces]
        probabilities = predict(self.model, self.card, crops, config.flip, config.batch_size)
        named = iter(name_expressions(probabilities, self.card, [place for place, _ in faces], config.min_margin))
        for name, image, found in waiting:
            yield NamedImage(name, image, [crop for _, crop in found], [next(named) for _ in found])


def open_reader(config: PredictConfig) -> ExpressionReader:
    """Return the network of a configuration with its face finder (raises ConfigError, or what they raise)."""
    if config.ckpt is None:
        raise ConfigError("predict.ckpt: expected best.safetensors or a run's folder, found nothing; or give --ckpt")
    if config.align and config.faces == "whole":
        raise ConfigError("predict.align turns faces that are found; with predict.faces whole none is, so drop one")
    path = find_model(config.ckpt)
    model, card = load_model(path, str(pick_device(config.device, "predict.device")))
    finder = build_face_finder(config.face_finder) if config.faces == "find" else None
    return ExpressionReader(model, card, config, path, finder)
