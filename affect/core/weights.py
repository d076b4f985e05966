"""Where pretrained weights are: short names that users know -> local folder or hub id."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

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
