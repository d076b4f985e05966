"""Reading the sound of a clip and cutting it into the short pieces that encoders take."""

from __future__ import annotations

from pathlib import Path

import av
import librosa
import numpy as np
import soundfile

from affect.core.errors import MediaError
from extractors.media.video import decode, open_media

SAMPLE_RATE = 16_000
CLIP_SECONDS = 2

# what libsndfile reads exactly; everything else is a container for PyAV
_SOUND_FILES = {".wav", ".flac", ".ogg", ".aiff", ".aif"}


def load_audio(path: str | Path) -> np.ndarray | None:
    """Return the sound of a file as float32 mono [N] at `SAMPLE_RATE`, or None where it has no sound stream.

    Channels are averaged. Containers are decoded at their own rate and resampled by librosa,
    since decord's resampling is wrong. Raises MediaError for a file that cannot be read.
    """
    path = Path(path)
    wave, rate = _read_sound_file(path) if path.suffix.lower() in _SOUND_FILES else _read_container(path)
    if wave is None:
        return None
    mono = wave.mean(axis=0)
    if not np.isfinite(mono).all():
        raise MediaError(f"{path}: the sound holds NaN or infinity; expected finite samples, so fetch it again")
    if rate != SAMPLE_RATE:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)
    return mono.astype(np.float32, copy=False)


def sound_clips(wave: np.ndarray, count: int = 8) -> np.ndarray:
    """Cut a sound [N] into pieces of `CLIP_SECONDS` at equal steps from start to end: [count, 32000].

    Piece k starts at k * (duration - CLIP_SECONDS) / (count - 1); a shorter sound is padded with
    zeros, so that all its pieces are the same. A longer one is covered with overlaps or gaps.
    """
    length = CLIP_SECONDS * SAMPLE_RATE
    wave = np.pad(np.asarray(wave, dtype=np.float32), (0, max(length - len(wave), 0)))
    room = len(wave) - length
    starts = [k * room // max(count - 1, 1) for k in range(count)]
    return np.stack([wave[start : start + length] for start in starts])


def _read_sound_file(path: Path) -> tuple[np.ndarray | None, int]:
    """Return samples [C, N] and their rate; None where there are no samples."""
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:  # missing, broken, or another format under this name: PyAV says which
        return _read_container(path)
    return (samples.T if len(samples) else None), rate


def _read_container(path: Path) -> tuple[np.ndarray | None, int]:
    """Return samples [C, N] of the first sound stream and their rate; None where there is no such stream."""
    with open_media(path) as container:
        if not container.streams.audio:
            return None, 0
        to_float = av.AudioResampler(format="fltp")  # changes the sample format only
        pieces = [
            piece.to_ndarray()
            for frame in decode(container, container.streams.audio[0])
            for piece in to_float.resample(frame)
        ]
    if not pieces:
        raise MediaError(f"{path}: no sample of its sound stream can be decoded; expected sound, so fetch it again")
    # the decoder's rate: the header gives half of it for some AAC
    return np.concatenate(pieces, axis=1), to_float.rate
