"""Where pretrained weights are: short names that users know -> local folder or hub id; whether a hub is asked."""

from __future__ import annotations

import hashlib
import os
import sys
from functools import cache
from pathlib import Path
from threading import Thread

from affect.core.reading import parse_yaml, reading

HUB_IDS: dict[str, str] = {
    "Qwen25": "Qwen/Qwen2.5-7B-Instruct",
    "CLIP_VIT_LARGE": "openai/clip-vit-large-patch14",
    "SIGLIP_SO": "google/siglip-so400m-patch14-384",
    "DINO2_LARGE": "facebook/dinov2-large",
    "HUBERT_LARGE": "TencentGameMate/chinese-hubert-large",
    "WAVLM_LARGE": "microsoft/wavlm-large",
    "DATA2VEC_BASE": "facebook/data2vec-audio-base-960h",
    "CLIP_VITB32": "ViT-B-32/openai",
}
"""Where each named model comes from when nothing else is said."""

OWN_CODE = "only code of its own can load it, and such code is never run"
"""What is wrong with a model where a library asks for `trust_remote_code`."""

WEIGHTS_FILE_VARIABLE = "AFFECT_WEIGHTS"
"""Environment variable that names a YAML file of `NAME: folder or hub id` lines."""


def resolve_weights(name: str) -> str:
    """Return the folder or hub id that stands behind a model name.

    Looked up in this order: the environment variable `AFFECT_<NAME>`, the YAML file that
    `AFFECT_WEIGHTS` names, the hub ids above; any other name is returned as it is, so a
    path or hub id may be used wherever a name may. Raises ValueError when the YAML file
    is no such mapping.
    """
    from_variable = os.environ.get(f"AFFECT_{name.upper()}") if name.isidentifier() else None
    if from_variable:
        return from_variable
    table = os.environ.get(WEIGHTS_FILE_VARIABLE)
    if table:
        expected = f"lines 'NAME: folder or hub id', as {WEIGHTS_FILE_VARIABLE} names the file"
        with reading(table, expected):
            entries = parse_yaml(Path(table).read_text(encoding="utf-8"), table) or {}
            if not isinstance(entries, dict):
                raise ValueError(f"{table}: expected {expected}, found {type(entries).__name__}")
        if name in entries:
            return str(entries[name])
    return HUB_IDS.get(name, name)


def weights_hash(path: str | Path) -> str:
    """Return a short hash of the weight files in a folder (or of one file); '' when there is nothing local.

    Reads the size and the first and last MiB of every file, so that it stays quick on tens of gigabytes.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    files = [p for p in files if p.suffix in {".safetensors", ".bin", ".pt", ".pth", ".json"}]
    if not files:
        return ""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            if size > 1 << 20:
                handle.seek(max(1 << 20, size - (1 << 20)))
                digest.update(handle.read())
    return digest.hexdigest()[:16]


def source_hash(source: str) -> str:
    """Return the weights hash of a local folder, or of the cached copy of a hub id; '' where neither is there."""
    if Path(source).exists():
        return weights_hash(source)
    from huggingface_hub import snapshot_download

    try:
        return weights_hash(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):
        return ""


HUB_SECONDS = 5.0
"""How long the model hub may take to answer for the first time."""


def go_offline() -> None:
    """Let this process, and those that it starts, ask no model hub: libraries then look in their caches alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if hub := sys.modules.get("huggingface_hub.constants"):  # which read the variable when it was imported
        hub.HF_HUB_OFFLINE = True


def why_offline(source: str | Path) -> str:
    """Return why no hub is asked for weights that are in no local place; nothing where one is, or none is needed.

    A hub that does not answer is not asked again: libraries would each try for a minute.
    """
    return "" if Path(source).is_absolute() or Path(source).exists() else _why_offline()


@cache
def _why_offline() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "no hub is asked (--offline, HF_HUB_OFFLINE)"
    fault = _fault_of(constants.ENDPOINT)
    if not fault:
        return ""
    go_offline()
    return f"the hub {constants.ENDPOINT} cannot be reached: {fault}"


def _fault_of(endpoint: str) -> str:
    from http.client import HTTPException  # the help of commands needs none of this
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    found = [f"no answer in {HUB_SECONDS:g} s"]

    def ask() -> None:
        try:
            urlopen(Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
            found[0] = ""
        except HTTPError as error:  # an answer, too, unless it is a proxy's
            found[0] = str(error) if error.code in (403, 407) or error.code >= 500 else ""
        except HTTPException:
            found[0] = ""
        except OSError as error:
            found[0] = str(getattr(error, "reason", error))

    asking = Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(HUB_SECONDS)
    return found[0]
