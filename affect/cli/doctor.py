"""What is installed, found and missing on this machine, and what to do about it.

    affect doctor

The exit code is 1 where something that every run needs is missing or too old.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

EXTRAS = {
    "bnb": "language models in 4 bits (model.load_in_4bit)",
    "onnx": "affect export onnx",
    "pyfeat": "action units by py-feat",
    "ray": "extraction on a cluster (--engine ray)",
    "tensorboard": "run.trackers: [tensorboard]",
    "vllm": "quick answers and AU sentences (backend vllm)",
    "wandb": "run.trackers: [wandb]",
}
"""Extra of the package -> what it is for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    advice: str = ""
    """What to do, where something is to be done or can be had."""
    needed: bool = False
    """Whether no run goes without what is missing here."""


def main(arguments: list[str] | None = None) -> int:
    """Print the report, part by part as it is known; return 1 where something that is needed is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    bad = False
    for title, findings in (
        ("Python packages", packages()),
        ("Extras", extras()),
        ("Device", device()),
        ("Tools and folders", tools()),
        ("Weights (AFFECT_<NAME>, or the file that AFFECT_WEIGHTS names)", weights()),
    ):
        print(f"\n{title}", flush=True)
        for finding in findings:
            advice = f"  -> {finding.advice}" if finding.advice else ""
            print(f"  {finding.what:<24} {finding.found}{advice}", flush=True)
            bad |= finding.needed
    print(
        "\nsomething that is needed is missing: see the arrows above" if bad else "\neverything that is needed is here"
    )
    return int(bad)


def packages() -> Iterator[Finding]:
    """Yield the interpreter and every required package that is missing or too old; one line where all are well."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    wanted = [line for line in _requirements() if "extra ==" not in line]
    if not wanted:
        yield Finding("affect", "not installed in this environment", "pip install -e . (or make demo)", needed=True)
        return
    faults = [fault for line in wanted if (fault := _fault(line))]
    yield from (Finding(name, found, "pip install -e . (or make demo)", needed=True) for name, found in faults)
    yield Finding("required", f"{len(wanted) - len(faults)} of {len(wanted)} packages are here and new enough")


def extras() -> Iterator[Finding]:
    """Yield each extra: there, or how to have it."""
    for extra, purpose in EXTRAS.items():
        lines = [line for line in _requirements() if f'extra == "{extra}"' in line]
        lacking = [fault[0] for line in lines if (fault := _fault(line))]
        alone = ", in an environment of its own" if extra == "vllm" else ""
        advice = f"pip install 'affect[{extra}]'{alone}" if lacking else ""
        yield Finding(extra, f"{'not installed' if lacking else 'installed'}: {purpose}", advice)


def device() -> Iterator[Finding]:
    """Yield what computes: processors and memory, and each GPU with what it can."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", f"{cores} cores, {platform.machine()}")
    try:
        import torch

        from affect.core.device import half_precision
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be imported ({error})", "install it anew", needed=True)
        return
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding("GPU", f"none that torch {torch.__version__} ({build}) sees; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            half = str(half_precision()).removeprefix("torch.")
        yield Finding(f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {half}")


def tools() -> Iterator[Finding]:
    """Yield where OpenFace and mediapipe are, and how much room the working folder has."""
    from affect.faces.mediapipe_pipe import has_mediapipe, mediapipe_version

    named = os.environ.get("OPENFACE_EXECUTABLE")
    binary = shutil.which(named or "FeatureExtraction")
    advice = "set OPENFACE_EXECUTABLE to its FeatureExtraction, or bring its tables, or use --au_backend mediapipe"
    yield Finding("OpenFace", binary or f"not found{f' as {named}' if named else ''}", "" if binary else advice)
    try:
        yield Finding("mediapipe", f"{mediapipe_version()}: action units without OpenFace, and its face finder")
    except ModuleNotFoundError as error:
        found, _, advice = str(error).partition(": ")
        yield Finding("mediapipe", found.removeprefix("mediapipe "), advice, needed=has_mediapipe())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", f"{free:.0f} GiB free in {Path.cwd()}", "make room" if free < 1 else "")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    yield Finding("hub", "not asked (HF_HUB_OFFLINE)" if offline else "asked for weights that are not in a folder")


def weights() -> Iterator[Finding]:
    """Yield where the weights of each known name are looked for, and whether a folder is there."""
    from affect.core.weights import HUB_IDS, WEIGHTS_FILE_VARIABLE, resolve_weights

    for name, hub_id in HUB_IDS.items():
        try:
            place = resolve_weights(name)
        except (ValueError, OSError) as error:
            yield Finding(WEIGHTS_FILE_VARIABLE, str(error), "correct it", needed=True)
            return
        path = Path(place.partition(":")[2] if place.startswith(("hf:", "open_clip:")) else place)
        if path.exists():
            yield Finding(name, str(path))
        elif place == hub_id or not path.is_absolute():
            yield Finding(name, f"hub id {place}", f"for a folder of yours: AFFECT_{name.upper()}=/path")
        else:
            yield Finding(name, f"{path} does not exist", "correct AFFECT_WEIGHTS or the variable", needed=True)


def _requirements() -> list[str]:
    """Return what the installed package asks for, extras too; nothing where it is not installed."""
    try:
        return requires("affect") or []
    except PackageNotFoundError:
        return []


def _fault(requirement: str) -> tuple[str, str] | None:
    """Return a required package's name and what is wrong with it; None where it is well."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return wanted.name, f"not installed, expected {wanted.specifier}"
    return (
        None
        if wanted.specifier.contains(found, prereleases=True)
        else (
            wanted.name,
            f"{found}, expected {wanted.specifier}",
        )
    )
