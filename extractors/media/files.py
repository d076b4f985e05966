"""Finding the raw files of clips by name."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from affect.core.schema import check_name

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".mpg", ".mpeg", ".webm", ".wmv", ".flv", ".m4v")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg")


def find_video(root: Path | None, name: str) -> Path | None:
    """Return the video of a clip under any known suffix, or None."""
    return _find(root, name, VIDEO_SUFFIXES)


def find_audio(root: Path | None, name: str) -> Path | None:
    """Return the sound file of a clip under any known suffix, or None."""
    return _find(root, name, AUDIO_SUFFIXES)


def list_videos(root: Path) -> Counter[str]:
    """Return the names of all clips in a folder, with the number of files that have each (2: `a.mp4` and `a.avi`)."""
    if not root.is_dir():
        return Counter()
    with os.scandir(root) as entries:
        # a hidden file is no clip: macOS puts "._a.mp4" beside "a.mp4" on foreign disks
        paths = [Path(entry.name) for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    return Counter(path.stem for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)


def _find(root: Path | None, name: str, suffixes: tuple[str, ...]) -> Path | None:
    check_name(name)
    for suffix in suffixes if root else ():
        for spelling in (suffix, suffix.upper(), suffix.title()):
            path = root / f"{name}{spelling}"
            if path.is_file():
                return path
    return None
