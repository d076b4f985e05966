"""Image folders, one folder a class: train/val[/test], train/test, or the class folders alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from affect.core.failures import Failure
from affect.expressions.config import ImagesConfig
from affect.expressions.image_files import images_below
from affect.expressions.presets import PRESETS, ClassNames, folder_names, is_expression
from affect.expressions.records import POOL, Records, one_hot

logger = logging.getLogger(__name__)

PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def read_folders(
    root: Path, config: ImagesConfig, wanted: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, Records]]:
    """Return the class names and the parts of a folder: train, val and test as far as there are any, or one pool.

    Classes are `wanted`, else those of the known data set, else the training folders. A folder that is none
    of them is left out with a warning. Raises ValueError where the folders and the classes contradict.
    """
    parts = {part: _class_folders(folder) for part, folder in _part_folders(root).items()}
    every = sorted({name for folders in parts.values() for name in folders}, key=_number_or_name)
    if not every:
        raise ValueError(
            f"{root}: expected class folders (happy, sad, …) in it, or in train, val and test, found none; "
            "check images.data_root"
        )
    meaning = folder_names(every, config.data_type)
    wanted = wanted or (PRESETS[config.data_type].classes if config.data_type else ())
    classes = ClassNames(wanted or [name for name in every if name in parts.get("train", every)])
    unknown = [name for name in every if classes.index(meaning[name]) is None]
    _refuse_contradictions(root, classes, unknown, [meaning[name] for name in every], bool(wanted))
    return classes.names, {part: _records(root, folders, classes, meaning) for part, folders in parts.items()}


def _part_folders(root: Path) -> dict[str, Path]:
    folders = {path.name.casefold(): path for path in root.iterdir() if path.is_dir()}
    found = {}
    for part, names in PART_NAMES.items():
        here = [folders[name] for name in names if name in folders]
        if len(here) > 1:
            both = " and ".join(path.name for path in here)
            raise ValueError(f"{root}: expected one {part} folder, found {both}; move one away")
        if here:
            found[part] = here[0]
    return found or {POOL: root}


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by name, without hidden ones and what archives of another system leave."""
    return {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}


def _number_or_name(name: str) -> tuple[int, str]:
    """Sort numbers by value, before names."""
    return (int(name), name) if name.isdecimal() else (1 << 62, name)


def _refuse_contradictions(
    root: Path, classes: ClassNames, unknown: Sequence[str], present: Sequence[str], given: bool
) -> None:
    """Raise ValueError where a folder is none of the classes, and that is no matter of leaving a class out."""
    if unknown and not given:
        raise ValueError(
            f"{root}: expected in val and test the classes of train ({', '.join(classes.names)}), found {unknown[0]} "
            "beside them; remove it, or set images.classes"
        )
    there = {classes.index(name) for name in present}
    missing = [name for i, name in enumerate(classes.names) if i not in there]
    strange = [name for name in unknown if not is_expression(name)]
    if strange and missing:
        hint = "set images.data_type" if all(name.isdecimal() for name in strange) else "correct images.classes"
        raise ValueError(
            f"{root}: expected a folder for each class, found none for {', '.join(missing)} but "
            f"{', '.join(strange)}; {hint} or rename the folders"
        )


def _records(root: Path, folders: dict[str, Path], classes: ClassNames, meaning: dict[str, str]) -> Records:
    names: list[str] = []
    labels: list[int] = []
    failures = []
    for folder in sorted(folders, key=_number_or_name):
        index = classes.index(meaning[folder])
        images = images_below(folders[folder])
        if index is None:
            reason = f"expected one of the classes {', '.join(classes.names)}, found the folder {folder}"
            logger.warning("%s: %s; its %d images are left out", folders[folder], reason, len(images))
            if not is_expression(meaning[folder]):  # one of them is left out on purpose: contempt of AffectNet-7
                failures.append(Failure(folders[folder].relative_to(root).as_posix(), "label", reason))
            continue
        names += [image.relative_to(root).as_posix() for image in images]
        labels += [index] * len(images)
    known = np.array(labels, np.int64)
    return Records(names, known, one_hot(known, len(classes.names)), root, tuple(failures))
