"""Known data sets of facial expressions: their classes by name, the numbers of their folders, their normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from affect.expressions.config import ImageModelConfig, ImagesConfig, input_spec
from affect.expressions.samples import GRAY_MEAN, GRAY_STD, IMAGENET_MEAN, IMAGENET_STD, InputSpec

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "neutral": ("neutrality",),
    "happiness": ("happy", "joy", "joyful"),
    "sadness": ("sad",),
    "surprise": ("surprised",),
    "fear": ("fearful", "afraid", "scared"),
    "disgust": ("disgusted",),
    "anger": ("angry",),
    "contempt": ("contemptuous",),
}
"""Expression -> what else it is called."""
_EXPRESSIONS = {spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others)}


@dataclass(frozen=True)
class Preset:
    """What is known of a data set."""

    classes: tuple[str, ...]
    """In the order of the network's outputs."""
    numbers: dict[int, str]
    """Number that stands for a class in folder names and tables -> its name."""
    from_one: bool = False
    """Copies number the same classes from one, too."""
    gray: bool = False
    """Its pictures have no colour."""


_AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
_RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
_FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
_FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

PRESETS: dict[str, Preset] = {
    # Li, Deng and Du, CVPR 2017; the official labels count from one, image-folder copies often from zero
    "RAF-DB": Preset(_RAF_DB, dict(enumerate(_RAF_DB)), from_one=True),
    # Mollahosseini, Hasani and Mahoor, IEEE TAC 2017; with seven classes contempt is left out
    "AffectNet-7": Preset(_AFFECTNET[:7], dict(enumerate(_AFFECTNET))),
    "AffectNet-8": Preset(_AFFECTNET, dict(enumerate(_AFFECTNET))),
    # Lee et al., ICCV 2019; its folders have names
    "CAER-S": Preset(("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"), {}),
    # Barsoum et al., ICMI 2016; the order of the columns of votes
    "FERPlus": Preset(_FERPLUS, dict(enumerate(_FERPLUS)), gray=True),
    # Goodfellow et al., ICONIP 2013; the numbers of the CSV file
    "FER2013": Preset(_FER2013, dict(enumerate(_FER2013)), gray=True),
}


def expression(name: str) -> str:
    """Return the one spelling of an expression's name; a name that is none comes back in small letters."""
    return _EXPRESSIONS.get(name.strip().casefold(), name.strip().casefold())


def is_expression(name: str) -> bool:
    """Tell whether a name is one of the eight expressions that data sets label, in any spelling."""
    return expression(name) in _SPELLINGS


def data_spec(model: ImageModelConfig, images: ImagesConfig) -> InputSpec:
    """Return what a network sees of a data set: images.mean and std where given, else the data set's own.

    Colour pictures take ImageNet's (the recipe of POSTER V2), gray ones those of FER2013. Raises
    ConfigError where their number does not fit the network's channels.
    """
    if images.mean is not None or images.data_type is None or model.gray:
        return input_spec(model, images.mean, images.std)
    gray = PRESETS[images.data_type].gray
    mean, std = (GRAY_MEAN * 3, GRAY_STD * 3) if gray else (IMAGENET_MEAN, IMAGENET_STD)
    return input_spec(model, mean, std)


class ClassNames:
    """The classes of one task, found by name whatever a folder or table calls them."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.names = tuple(classes)
        self._index = {expression(name): index for index, name in enumerate(self.names)}
        if len(self._index) < len(self.names) or not self.names:
            raise ValueError(f"classes {list(self.names)}: expected names of different expressions, each once")

    def index(self, name: str) -> int | None:
        """Return the place of a class, None where it is not one of the task."""
        return self._index.get(expression(name))


def folder_names(folders: Sequence[str], data_type: str | None) -> dict[str, str]:
    """Return the class name of each class folder; without a known data set, or where it has a name, its own.

    Numbers mean what the data set says. Raises ValueError where it is open whether they count from zero or one.
    """
    if data_type is None:
        return {folder: folder for folder in folders}
    preset = PRESETS[data_type]
    numbers = {folder: int(folder) for folder in folders if folder.isdecimal()}
    first = 0
    if preset.from_one and numbers:
        has_zero, has_last = 0 in numbers.values(), len(preset.numbers) in numbers.values()
        if has_zero == has_last:
            raise ValueError(
                f"folders {', '.join(sorted(numbers))}: expected the classes of {data_type} numbered from 0 or from 1, "
                "cannot tell from which; give the folders names"
            )
        first = int(has_last)
    return {
        folder: preset.numbers.get(numbers[folder] - first, folder) if folder in numbers else folder
        for folder in folders
    }
