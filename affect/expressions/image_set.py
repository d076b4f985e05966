"""Labelled images as a data set: opened from folders or a FER2013 CSV file, read, changed and put side by side.

sets = open_images(config, spec)                 {"train": ImageSet, "val": ImageSet, ...}
failures = check_images(sets["train"], workers)  what cannot be read, so that `take` leaves it out
sets["train"][Draw(7, cycle)]                    augmented, a pure function of (seed, cycle, 7)
sets["train"][7]                                 plain
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from affect.core.failures import Failure
from affect.data.sampling import Draw
from affect.engine.stop import ignore_signals
from affect.expressions.augment import Augmentation
from affect.expressions.config import ImagesConfig
from affect.expressions.fer2013 import read_fer2013
from affect.expressions.folders import read_folders
from affect.expressions.image_files import ImageError, read_image, to_input
from affect.expressions.records import SPLITS, Records, arrange
from affect.expressions.samples import ImageBatch, InputSpec, Sample

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
Straighten = Callable[[np.ndarray], np.ndarray | None]
"""Picture uint8 RGB [H, W, 3] -> the face in it, upright and square; None where there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(Records, Dataset[Sample]):
    """The images of one split, as a network sees them."""

    name: str
    """Of the data set: its known name, or that of its folder or file."""
    split: str
    classes: tuple[str, ...]
    spec: InputSpec
    augmentation: Augmentation | None = None
    """Changes what a Draw asks for."""
    straighten: Straighten | None = None
    seed: int = 0

    def __getitem__(self, visit: Draw | int) -> Sample:
        """Return the plain picture of an index, the augmented one of a Draw (raises ImageError)."""
        index = visit.index if isinstance(visit, Draw) else int(visit)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        picture = self.raw(index)
        if self.augmentation is not None and isinstance(visit, Draw):
            image = self.augmentation(picture, (self.seed, visit.cycle, index))
        else:
            image = to_input(picture, self.spec)
        return Sample(self.names[index], image, int(self.labels[index]), torch.from_numpy(self.targets[index]))

    def raw(self, index: int) -> np.ndarray:
        """Return a picture uint8 RGB [H, W, 3], cut out and upright where faces are aligned (raises ImageError)."""
        if isinstance(self.source, Path):
            picture = read_image(self.source / self.names[index])
        else:
            picture = np.repeat(self.source[index][..., None], 3, axis=2)
        if self.straighten is None:
            return picture
        face = self.straighten(picture)
        if face is None:
            raise NoFaceError(f"{self.names[index]}: expected a face, found none; leave it out or set align off")
        return face


class NoFaceError(ImageError):
    """A picture that was to be aligned and shows no face."""


def open_images(
    config: ImagesConfig,
    spec: InputSpec,
    splits: Sequence[str] = SPLITS,
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """Return the splits of a data set that exist, of those asked for: a folder of images, or a FER2013 CSV file.

    `classes` (those of a checkpoint) go before images.classes and the data set's own. Only train is augmented,
    with `seed`. Raises ValueError in one sentence where there is nothing to use; what is there but cannot be
    used is in the `failures` of its set.
    """
    wanted = tuple(classes or config.classes or ())
    root = Path(config.data_root)
    if root.is_file():
        names, parts = read_fer2013(root, config, wanted)
    elif root.is_dir():
        names, parts = read_folders(root, config, wanted)
    else:
        raise ValueError(f"images.data_root: expected a folder of images or a FER2013 CSV file, found no {root}")
    arranged = arrange(parts, config.val_split, config.test_split, config.split_seed, str(root))
    of_split = partial(
        ImageSet,
        name=config.data_type or root.stem,
        classes=names,
        spec=spec,
        straighten=face_straightener() if config.align else None,
        seed=seed,
    )
    augmentation = {"train": Augmentation(config, spec)} if config.augment else {}
    found = {
        split: of_split(**vars(records), split=split, augmentation=augmentation.get(split))
        for split, records in arranged.items()
        if split in splits
    }
    for image_set in found.values():
        _warn_of_missing(image_set)
    if not arranged:
        raise ValueError(f"{root}: expected images of {', '.join(names)}, found none that can be used")
    return found


def face_straightener() -> Straighten:
    """Return what cuts the largest face out of a picture, upright, with the better finder that is installed."""
    from affect.faces.align import straighten  # what finds faces takes a while to import
    from affect.faces.finders import build_face_finder

    return partial(straighten, finder=build_face_finder("auto"))


def check_images(image_set: ImageSet, workers: int) -> list[Failure]:
    """Return the images of a set that cannot be read, or show no face where faces are aligned.

    Reads every one, in as many processes as are asked for; pixels of a CSV file were checked on opening.
    """
    if not isinstance(image_set.source, Path) and image_set.straighten is None:
        return []
    loader = loader_of(Readable(image_set, only_look=True), workers, batch_size=32)
    failures = [failure for _, failed in tracked(loader, f"checking {image_set.split}") for failure in failed]
    if failures:
        logger.warning(
            "%s: %d of %d images of %s cannot be used, e.g. %s",
            *(image_set.name, len(failures), len(image_set), image_set.split, failures[0].reason),
        )
    return failures


@dataclass(frozen=True, eq=False)
class Readable(Dataset):
    """The images of a set, a Failure in place of one that cannot be read: a worker that raised would end it all."""

    image_set: ImageSet
    only_look: bool = False
    """Return None for an image that can be read."""

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, visit: Draw | int) -> Sample | Failure | None:
        """Return what the set has, or why it cannot be read."""
        try:
            if not self.only_look:
                return self.image_set[visit]
            self.image_set.raw(int(visit))
        except (ImageError, OSError) as error:
            name = self.image_set.names[visit.index if isinstance(visit, Draw) else visit]
            return Failure(name, "align" if isinstance(error, NoFaceError) else "decode", str(error))
        return None


def collate(items: Sequence[Sample | Failure | None]) -> tuple[ImageBatch | None, list[Failure]]:
    """Return what could be read side by side, None when nothing could, and the failures."""
    samples = [item for item in items if isinstance(item, Sample)]
    failures = [item for item in items if isinstance(item, Failure)]
    if not samples:
        return None, failures
    images, targets = (torch.stack([getattr(sample, key) for sample in samples]) for key in ("image", "target"))
    labels = torch.tensor([sample.label for sample in samples])
    return ImageBatch([sample.name for sample in samples], images, labels, targets), failures


def loader_of(images: Readable, workers: int, device: str = "cpu", **batches: Any) -> DataLoader:
    """Return what loads the batches of images that can be read, and failures; `batches` as DataLoader takes them."""
    return DataLoader(
        images,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device == "cuda",
        worker_init_fn=ignore_signals,
        **batches,
    )


def tracked(items: Iterable[_Item], what: str) -> Iterable[_Item]:
    """Show on a terminal how far a loop has come."""
    console = Console(stderr=True)
    return track(items, what, transient=True, console=console, disable=not console.is_terminal)


def _warn_of_missing(image_set: ImageSet) -> None:
    counts = np.bincount(image_set.labels, minlength=len(image_set.classes))
    missing = [name for name, count in zip(image_set.classes, counts, strict=True) if not count]
    if missing:
        logger.warning("%s: %s has no image of %s", image_set.name, image_set.split, ", ".join(missing))
