"""The folder of a run: its name, whether the same run is there, and that one process at a time writes to it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from affect.core import files
from affect.core.config import ConfigError, flat, parse, read_yaml
from affect.engine.checkpoint import ALL_DONE, find_checkpoint, list_checkpoints, read_state

logger = logging.getLogger(__name__)


def choose_folder(config: Any, name: str) -> tuple[Path, Path | None, str]:
    """Return the folder of a run, the checkpoint that it goes on from, if any, and why it is over or begins anew.

    The folder is `output_dir`, or output/{name}/{name}_{YYYYmmddHHMM}. Without `output_dir` the newest unfinished run
    there with the same configuration goes on; a finished or different one is left alone. Raises ValueError when
    `output_dir` holds a run of another configuration, or one that can no longer be gone on from.
    """
    folder, anew = (Path(config.run.output_dir), "") if config.run.output_dir else _named(config, name)
    last = (list_checkpoints(folder) or [None])[-1]
    if other := _other_run(config, folder, last):
        if not config.run.overwrite_output_dir:
            raise ValueError(
                f"{folder} holds a run {other}; give another output_dir, remove that folder, or set "
                "overwrite_output_dir: true"
            )
        with locked(folder):
            logger.info("%s: beginning anew in place of a run %s", folder, other)
            for checkpoint in [*list_checkpoints(folder), *folder.glob("checkpoint-*")]:
                shutil.rmtree(checkpoint)
        last = None
    asked = _asked(Path(config.run.resume_ckpt_path)) if config.run.resume_ckpt_path else None
    if asked and (last is None or read_state(last).step < read_state(asked).step):
        return folder, asked, ""
    reason = _over(config, last) if last else anew
    for key, (before, now) in _changes(config, last).items() if last and not reason else ():
        if _run_key(key) in config.run.passing:
            logger.info("%s goes on with %s %s, before %s", folder, key, now, before)
    return folder, last, reason


def _asked(path: Path) -> Path:
    """Return the checkpoint that run.resume_ckpt_path names (raises ValueError where there is none)."""
    folder = path if path.is_dir() else path.parent
    if not list_checkpoints(folder) and (other := _older(folder)):
        raise ValueError(f"run.resume_ckpt_path: {folder} holds a run {other}; leave it out, and a new run begins")
    return find_checkpoint(path)


def _named(config: Any, name: str) -> tuple[Path, str]:
    root, others = Path("output") / name, []
    for folder in sorted(root.glob(f"{name}_*"), reverse=True):
        last = (list_checkpoints(folder) or [None])[-1]
        if last and not _over(config, last):
            if not (differing := differing_keys(config, last)):
                return folder, ""
            others.append((folder, ", ".join(differing)))
    anew = "{} has other settings ({}), so a new run begins".format(*others[0]) if others else ""
    folder = new = root / f"{name}_{datetime.now():%Y%m%d%H%M}"
    number = 1
    while new.exists():  # two runs of one minute
        number += 1
        new = folder.with_name(f"{folder.name}_{number}")
    return new, anew


def _other_run(config: Any, folder: Path, last: Path | None) -> str:
    """Return in which way the run in a folder is another one; nothing where it is this one, or none."""
    if last:
        differing = differing_keys(config, last)
        return f"with other settings ({', '.join(differing)})" if differing else ""
    return _older(folder)


def _older(folder: Path) -> str:
    """Return that a folder has what earlier trainings of images and of the AU agent left; nothing where it has not."""
    old = [*folder.glob("resume.pt"), *folder.glob("checkpoint-*/trainer_state.json")]
    if not old:
        return ""
    return f"of an earlier version of this program ({old[0].relative_to(folder)}), which cannot be gone on from"


def differing_keys(config: Any, checkpoint: Path) -> list[str]:
    """Return the keys in which a checkpoint's configuration differs, but for those that may change."""
    may = {*config.uncompared, *config.run.passing}
    return [key for key in _changes(config, checkpoint) if may.isdisjoint((key, _run_key(key), key.split(".")[0]))]


def _changes(config: Any, checkpoint: Path) -> dict[str, tuple[Any, Any]]:
    """Return key -> value there and value here where a checkpoint's configuration differs."""
    path = checkpoint / "config.yaml"
    try:
        there = parse(type(config), read_yaml(path), str(path))
    except ConfigError as error:
        return {str(error).splitlines()[0]: ("", "")}
    before, now = (flat(each.model_dump(mode="json")) for each in (there, config))
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def _run_key(key: str) -> str:
    return key.removeprefix("run.")  # which is all of a flat file


def _over(config: Any, checkpoint: Path) -> str:
    """Return why the run of a checkpoint is over; nothing where it is not, or it is now to go on for longer."""
    state, changes = read_state(checkpoint), _changes(config, checkpoint)
    before, now = next((found for key, found in changes.items() if _run_key(key) == "max_epoch"), (0, 0))
    patience = state.reason != ALL_DONE and any(_run_key(key) == "early_stop" for key in changes)
    return state.reason if state.finished and not (now > before or patience) else ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder while entered (raises ValueError where one is at work there)."""
    refusal = f"{folder}: another process is training there; wait for it, or give another run.output_dir"
    with files.locked(folder / ".lock", refusal):
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # nothing came of it
                (folder / ".lock").unlink()
                folder.rmdir()
