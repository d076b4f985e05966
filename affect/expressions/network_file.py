"""A trained network in one file: weights as safetensors, and in its header all that predicting needs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from affect.core.files import atomic_write
from affect.core.reading import reading
from affect.expressions.config import ImageModelConfig
from affect.expressions.samples import InputSpec

FORMAT = "affect-fer-1"
NAMES = ("best.safetensors", "last.safetensors")
"""Files of a run, the one to prefer first."""


@dataclass(frozen=True)
class ModelCard:
    """What a network is, what it sees and what its outputs mean."""

    model: ImageModelConfig
    classes: tuple[str, ...]
    input: InputSpec
    multi_label: bool = False
    """Outputs are independent (sigmoid) instead of one distribution (softmax)."""
    aligned: bool = False
    """Faces were found and turned upright before training (images.align)."""
    data: str = ""
    """Name of the data it was trained on."""
    epoch: int = 0
    """Epochs of training."""
    scores: dict[str, float] = field(default_factory=dict)
    """Validation scores, 0 to 1 (loss in nats)."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


_CARD = TypeAdapter(ModelCard)


def save_model(path: Path, weights: dict[str, Tensor], card: ModelCard) -> None:
    """Write weights and card whole or not at all."""
    header = {"format": FORMAT, "affect": version("affect"), "card": _CARD.dump_json(card).decode()}
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_write(path) as handle:
        handle.write(save(plain, metadata=header))


def find_model(path: str | Path) -> Path:
    """Return the file of a network: the file itself, or the best one of a run's folder (raises ValueError)."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path}: expected a run of the image track, found neither {' nor '.join(NAMES)} in it")
        return found[0]
    if not path.is_file():
        raise ValueError(
            f"{path}: expected a network ({' or '.join(NAMES)}) or a run's folder, found no file; correct it"
        )
    return path


def is_network(path: str | Path) -> bool:
    """Tell whether a safetensors file bears the mark of this format; an unreadable one does not."""
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT
    return False


def read_card(path: str | Path) -> ModelCard:
    """Return the card of a file or run folder (raises ValueError where it is none of this format, or cut off)."""
    return read_network(path, weights=False)[0]


def read_network(path: str | Path, weights: bool = True) -> tuple[ModelCard, dict[str, Tensor]]:
    """Return card and weights, if wanted, of a file or run folder (raises ValueError as read_card does)."""
    path, advice = find_model(path), "it may be cut off: copy it again, or take the run's other file"
    with reading(path, "a whole network in safetensors", advice), safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            found = header.get("format", "a safetensors file without that mark")
            raise ValueError(f"{path}: expected a network of train.py's image track ({FORMAT}), found {found}")
        card = _CARD.validate_json(header["card"])
        return card, {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
