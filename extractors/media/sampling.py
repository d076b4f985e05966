"""Which frames of a clip are looked at."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

SAMPLINGS = ("uniform", "headtail", "emotion_peak")


def uniform_indices(num_frames: int, n: int = 8) -> list[int]:
    """Return n frame indices at equal steps from frame 0; a shorter clip repeats its last index."""
    _check_counts(num_frames, n)
    k = min(n, num_frames)
    # np.arange and not i * step: rounding differs, and features on disk were made with this
    indices = [int(i) for i in np.arange(0, num_frames, num_frames / k)][:k]
    return indices + [indices[-1]] * (n - k)


def headtail_indices(num_frames: int, n: int = 8) -> list[int]:
    """Return n frame indices, half from the first and half from the second half of the clip, ends included.

    The reference draws them at random within each half; here they are evenly spaced, so that
    features can be made again. A clip with fewer than n frames repeats indices.
    """
    _check_counts(num_frames, n)
    middle = num_frames // 2
    head = np.linspace(0, max(middle - 1, 0), n // 2).astype(int)
    tail = np.linspace(middle, num_frames - 1, n - n // 2).astype(int)
    return [int(i) for i in (*head, *tail)]


def peak_indices(au_info: Mapping[str, Any] | None, num_frames: int, n: int = 8) -> list[int]:
    """Return n sorted frame indices: the first emotion peak, its neighbours, the rest spread over the clip.

    `au_info` is that block of the AU analysis: `total_frames` and `peak_frames`, of which the
    first peak counts. Indices out of the clip are clipped to it. Without a peak the frames are
    uniform, as everywhere else, and a warning says so; the reference used a linspace there.
    """
    _check_counts(num_frames, n)
    peaks = (au_info or {}).get("peak_frames") or []
    if not peaks:
        warnings.warn("emotion_peak sampling without a peak in the AU analysis: uniform frames are taken", stacklevel=2)
        return uniform_indices(num_frames, n)
    peak = int(peaks[0]["peak_index"])
    total = int(au_info.get("total_frames") or num_frames)
    before = int(peaks[0].get("frames_before_peak", peak))
    after = int(peaks[0].get("frames_after_peak", total - 1 - peak))

    taken = [peak, *(i for i in _neighbours(peak, before, after) if 0 <= i < total)][:n]
    free = [i for i in range(total) if i not in taken]
    missing = n - len(taken)
    if len(free) > missing:
        free = [free[int(i * len(free) / missing)] for i in range(missing)]
    taken = sorted(taken + free)
    rounds = math.ceil(n / len(taken))
    return [int(i) for i in np.clip(sorted((taken * rounds)[:n]), 0, num_frames - 1)]


def _neighbours(peak: int, before: int, after: int) -> list[int]:
    """Frames beside the peak, nearest first: two a side, or what the side has by the stored counts."""
    if before == 0:
        return [peak + 1, peak + 2]
    if after == 0:
        return [peak - 1, peak - 2]
    beside = [peak - i for i in range(1, min(before, 2) + 1)] + [peak + i for i in range(1, min(after, 2) + 1)]
    return sorted(beside, key=lambda i: abs(i - peak))


def frame_indices(
    num_frames: int, n: int = 8, sampling: str = "uniform", au_info: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the n frame indices of one kind of sampling: uniform, headtail or emotion_peak.

    Raises ValueError for another word, and for a clip or a request without frames.
    """
    if sampling == "uniform":
        return uniform_indices(num_frames, n)
    if sampling == "headtail":
        return headtail_indices(num_frames, n)
    if sampling == "emotion_peak":
        return peak_indices(au_info, num_frames, n)
    raise ValueError(f"sampling {sampling!r} is not known: expected one of {', '.join(SAMPLINGS)}; correct the config")


def _check_counts(num_frames: int, n: int) -> None:
    if num_frames < 1 or n < 1:
        raise ValueError(f"cannot take {n} of {num_frames} frames: expected at least one of each; skip this clip")
