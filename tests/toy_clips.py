"""Clips that tests write: a video without sound, a sound file and an OpenFace table each."""

from pathlib import Path

import av
import numpy as np
import soundfile


def write_video(path: Path, frames: int = 12, seed: int = 0, codec: str = "mpeg4") -> None:
    """Write a video of 64 x 64 pixels without sound; the seed decides what it shows."""
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        for i in range(frames):
            picture = noise // 4 + np.uint8(20 * i % 191)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_table(path: Path, frames: int = 12, success: int = 1) -> None:
    """Write an OpenFace table with two action units; success 0 means that no frame has a face."""
    rows = [f"{i + 1}, 0, {i / 10:.3f}, 0.98, {success}, {1 + i % 5:.2f}, 0.50" for i in range(frames)]
    path.write_text("\n".join(["frame, face_id, timestamp, confidence, success, AU12_r, AU04_r", *rows]) + "\n")


def write_clips(root: Path, names: list[str], faceless: str = "") -> dict[str, Path]:
    """Write the clips into folders video, audio and openface below `root`; return those."""
    folders = {kind: root / kind for kind in ("video", "audio", "openface")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        write_video(folders["video"] / f"{name}.mp4", seed=seed)
        write_table(folders["openface"] / f"{name}.csv", success=int(name != faceless))
        wave = np.sin(np.arange(16000) * (seed + 1) / 400)
        soundfile.write(folders["audio"] / f"{name}.wav", wave, 16000)
    return folders
