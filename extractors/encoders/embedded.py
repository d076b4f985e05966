"""Encoders that need no weights: frequency-domain pictures, prosody statistics, hashed n-grams.

They let the whole chain run on a machine without weights and network. Each is a classic
descriptor with fixed constants, so that the same input gives the same numbers everywhere.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import cv2
import librosa
import numpy as np
from scipy import fft

from affect.core.schema import AU_VALUES, UNMEASURED
from extractors.au.course import COLUMNS, WINDOWS, values_of
from extractors.media.decode import SAMPLE_RATE

_SIDE = 48
_HOP = 320  # 20 ms
_WINDOW = 1024  # 64 ms: four periods of the lowest pitch
_LOWEST_PITCH, _HIGHEST_PITCH = 65.0, 500.0
_FLOOR_DB = -80.0
_DEEP = 0.1  # normalised difference below which the first dip counts as the period
_WORD = re.compile(r"\w+(?:'\w+)?")


class DctEncoder:
    """Low frequencies of the gray picture's 2-D cosine transform, after Hafed & Levine (IJCV 2001).

    The picture is shrunk to 48 x 48 and brought to mean 0 and variance 1. Coefficients are
    weighted by their frequency, since amplitudes in natural pictures fall as 1/f (Field 1987).
    """

    name = "DCT"
    dim = 128

    def __init__(self) -> None:
        frequency = np.hypot(*np.mgrid[:_SIDE, :_SIDE])
        self._lowest = np.argsort(frequency, axis=None, kind="stable")[1 : self.dim + 1]  # 0 is the mean, always 0
        self._weights = frequency.ravel()[self._lowest] / _SIDE

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        layer = f"{self.dim} lowest frequencies without the mean, times frequency"
        versions = {"opencv": cv2.__version__, "scipy": version("scipy")}
        return _provenance(layer, "none", f"gray, {_SIDE} x {_SIDE}, mean 0, variance 1", versions)

    @staticmethod
    def prepare(frames: np.ndarray) -> np.ndarray:
        """Return RGB frames uint8 [T, H, W, 3] as small gray pictures uint8 [T, 48, 48]."""
        pictures = np.empty((len(frames), _SIDE, _SIDE), np.uint8)
        for picture, frame in zip(pictures, frames, strict=True):
            gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
            cv2.resize(gray, (_SIDE, _SIDE), dst=picture, interpolation=cv2.INTER_AREA)
        return pictures

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return [T, 128] for each item of prepared pictures [T, 48, 48]; raises ValueError for other ones."""
        return [self._encode(pictures) for pictures in _checked(items, (_SIDE, _SIDE))]

    def _encode(self, pictures: np.ndarray) -> np.ndarray:
        if len(pictures) == 0:
            return np.zeros((0, self.dim), np.float32)
        pictures = pictures.astype(np.float64)
        pictures -= pictures.mean(axis=(1, 2), keepdims=True)
        pictures /= pictures.std(axis=(1, 2), keepdims=True) + 1.0  # a flat picture stays near 0
        spectrum = fft.dctn(pictures, axes=(1, 2), norm="ortho").reshape(len(pictures), -1)
        return (spectrum[:, self._lowest] * self._weights).astype(np.float32)


class ProsodyEncoder:
    """Statistics of pitch, loudness, voice quality and spectrum of each sound clip.

    The choice follows the minimalistic acoustic parameter set for affect (Eyben et al., GeMAPS,
    IEEE TAC 2016), computed by librosa; pitch by YIN (`yin`). Silence
    gives finite numbers: 0 pitch, loudness at -80 dB.
    """

    name = "PROSODY"
    dim = 64

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        layer, pooling = "pitch, loudness, voice quality, spectrum, 12 MFCC", "statistics over each clip"
        versions = {"librosa": version("librosa"), "numpy": version("numpy")}
        return _provenance(layer, pooling, f"{SAMPLE_RATE} Hz, windows of {_WINDOW} every {_HOP} samples", versions)

    @classmethod
    def prepare(cls, clips: np.ndarray | None) -> np.ndarray:
        """Return the features [C, 64] of sound clips float32 [C, N] at 16 kHz; [0, 64] for None, no sound."""
        if clips is None or len(clips) == 0:
            return np.zeros((0, cls.dim), np.float32)
        # a sound of one clip's length is the same clip eight times
        rows: dict[bytes, int] = {}
        order = [rows.setdefault(clip.tobytes(), len(rows)) for clip in clips]
        distinct = np.stack([clips[order.index(row)] for row in range(len(rows))])
        return _prosody(distinct).astype(np.float32)[order]

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the items, since all work is done in preparing them; raises ValueError for items that are not."""
        return _checked(items, (self.dim,))


class HashedNgramEncoder:
    """Words and word pairs hashed with a sign into 512 bins, rows of length 1 (Weinberger et al., ICML 2009)."""

    name = "HASHED_NGRAMS"
    dim = 512
    prepare = staticmethod(list)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        layer, pooling = "words and word pairs, CRC-32 into bin and sign", "sum, then length 1"
        return _provenance(layer, pooling, "lower case, words only, marks at both ends", {"numpy": version("numpy")})

    def __call__(self, items: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return [N, 512] for each list of N texts."""
        none = np.zeros((0, self.dim), np.float32)
        return [np.stack([self._row(text) for text in texts]) if texts else none.copy() for texts in items]

    def _row(self, text: str) -> np.ndarray:
        # the marks leave something to hash in a text without words
        words = ["<", *_WORD.findall(text.lower()), ">"]
        row = np.zeros(self.dim, np.float32)
        for gram in (*words[1:-1], *(f"{a} {b}" for a, b in itertools.pairwise(words))):
            code = zlib.crc32(gram.encode())
            row[code % self.dim] += 1.0 if code >> 31 else -1.0
        if not row.any():  # every bin cancelled out
            row[zlib.crc32(text.encode()) % self.dim] = 1.0
        return row / np.linalg.norm(row)


class AuValuesEncoder:
    """What was measured of the action units: level, change and peak over windows of time, see `extractors.au.course`.

    Sentences lose most of it (an intensity becomes a word, words a vector); here a row is a window of the clip.
    """

    name = AU_VALUES
    dim = len(COLUMNS)
    prepare = staticmethod(values_of)

    def provenance(self) -> dict[str, Any]:
        """Return how the features are made, as plain JSON values."""
        layer = "17 levels, 17 changes, 17 peaks (0 to 5), 18 presences (0 to 1), in the order of OpenFace's columns"
        return _provenance(layer, f"{WINDOWS} windows of time", f"{UNMEASURED:g} where not measured", {})

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the items, since all work is done in preparing them; raises ValueError for items that are not."""
        return _checked(items, (self.dim,))


def _provenance(layer: str, pooling: str, preprocessing: str, versions: dict[str, str]) -> dict[str, Any]:
    how = {"layer": layer, "pooling": pooling, "preprocessing": preprocessing}
    return {"family": "embedded", "weights": "", **how, "versions": versions}


def _checked(items: Sequence[np.ndarray], row: tuple[int, ...]) -> list[np.ndarray]:
    for item in items:
        if item is None or item.shape[1:] != row:
            found = None if item is None else list(item.shape)
            raise ValueError(f"an item is {found}, expected [T, {', '.join(map(str, row))}]; call prepare on it first")
    return list(items)


def _prosody(clips: np.ndarray) -> np.ndarray:
    """Return [C, 64] statistics of clips [C, N]."""
    spectrum = np.abs(librosa.stft(clips, n_fft=_WINDOW, hop_length=_HOP))  # [C, bins, F], frames 20 ms apart
    rms = librosa.feature.rms(S=spectrum, frame_length=_WINDOW)[:, 0]
    loudness = 20 * np.log10(np.maximum(rms, 10 ** (_FLOOR_DB / 20))) - _FLOOR_DB  # [C, F] dB above the floor
    audible = (loudness > 15) & (loudness > loudness.max(axis=1, keepdims=True) - 30)
    pitch = np.ones(audible.shape)
    # 19 x [C, F]: what is averaged over the audible frames, each brought to the order of 1
    qualities = np.zeros((19, *audible.shape))
    if audible.any():  # the other frames enter no statistic, and pitch takes most of the time
        pitch[audible], periodicity = _pitch(_windows(clips)[audible])
        spectrum = np.ascontiguousarray(spectrum.transpose(0, 2, 1))
        heard = spectrum[audible].T
        zero_crossings, flux = (track[audible] for track in (_zero_crossings(clips), _flux(spectrum)))
        qualities[:, audible] = [periodicity, *_quality(heard, zero_crossings, flux), *_timbre(heard)]
    voiced = audible & (qualities[0] > 0.5)
    rows = []
    for c in range(len(clips)):
        contours = (_contour(np.log2(pitch[c] / 100), voiced[c]), _contour(loudness[c] / 20, audible[c]))
        timing = (_timing(voiced[c]), _timing(audible[c]))
        rows.append(np.concatenate([*contours, *timing, *_moments(qualities[:, c], audible[c])]))
    return np.stack(rows)


def _windows(clips: np.ndarray) -> np.ndarray:
    """Return a view [C, F, window] of clips [C, N]: the samples around each frame, zeros beyond the ends."""
    centred = np.pad(clips, ((0, 0), (_WINDOW // 2, _WINDOW // 2)))
    return np.lib.stride_tricks.sliding_window_view(centred, _WINDOW, axis=1)[:, ::_HOP]


def _pitch(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pitch in Hz and periodicity -1..1 of each of the windows [M, window], both [M]."""
    pitch = yin(windows, SAMPLE_RATE, _LOWEST_PITCH, _HIGHEST_PITCH)
    lag = np.rint(SAMPLE_RATE / pitch).astype(int)
    span = _WINDOW - int(SAMPLE_RATE / _LOWEST_PITCH) - 1
    now = windows[:, :span]
    later = np.lib.stride_tricks.sliding_window_view(windows, span, axis=1)[np.arange(len(lag)), lag]
    power = np.sqrt((now**2).sum(axis=1) * (later**2).sum(axis=1))
    return pitch, (now * later).sum(axis=1) / (power + 1e-9)


def yin(windows: np.ndarray, rate: int, lowest: float, highest: float) -> np.ndarray:
    """Return the pitch in Hz [M] of windows of sound [M, N] at `rate` samples a second, between two pitches in Hz.

    YIN (de Cheveigné & Kawahara, JASA 111, 2002). librosa's own and its zero crossings call functions that numba
    compiles and keeps on disk; what it keeps is now and then broken, and then every process that calls them dies.
    The period is the first dip of the difference function, normalised by its mean so far, that is deep enough,
    else the deepest place; a parabola through its neighbours refines it.
    """
    size = windows.shape[1]
    shortest, longest = math.floor(rate / highest), min(math.ceil(rate / lowest), size - 1)
    power = np.abs(fft.rfft(windows, fft.next_fast_len(2 * size - 1, real=True), axis=1)) ** 2
    alike = fft.irfft(power, fft.next_fast_len(2 * size - 1, real=True), axis=1)[:, : longest + 1]
    energy = np.cumsum(windows**2, axis=1)[:, :longest]
    difference = 2 * (alike[:, :1] - alike[:, 1:]) - energy  # of lags 1 to longest
    mean = np.cumsum(difference, axis=1) / np.arange(1, longest + 1)
    curve = (difference / (mean + np.finfo(mean.dtype).tiny))[:, shortest - 1 :]

    before, after = curve[:, :-1], curve[:, 1:]
    dips = np.zeros(curve.shape, bool)
    dips[:, 0] = before[:, 0] < after[:, 0]
    dips[:, 1:] = after < before
    dips[:, 1:-1] &= curve[:, 1:-1] <= curve[:, 2:]
    deep = dips & (curve < _DEEP)
    place = np.where(deep.any(axis=1), deep.argmax(axis=1), curve.argmin(axis=1))
    return rate / (shortest + place + _shift(curve, place))


def _shift(curve: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return where the parabola through each place [M] of a curve [M, K] and its neighbours has its end, -1 to 1."""
    rows, inner = np.arange(len(curve)), np.clip(place, 1, curve.shape[1] - 2)
    left, middle, right = (curve[rows, inner + step] for step in (-1, 0, 1))
    bend, slope = left + right - 2 * middle, (right - left) / 2
    bent = (np.abs(slope) < np.abs(bend)) & (inner == place)
    return np.where(bent, -slope / np.where(bent, bend, 1), 0)


def _zero_crossings(clips: np.ndarray) -> np.ndarray:
    """Return the share of samples at which the sign changes within a window, [C, F], as `yin` without numba."""
    below = np.pad(clips, ((0, 0), (_WINDOW // 2, _WINDOW // 2)), mode="edge") < -1e-10
    changes = np.cumsum(np.diff(below, axis=1, prepend=below[:, :1]), axis=1)  # up to each sample
    return (changes[:, _WINDOW - 1 :: _HOP] - changes[:, : 1 - _WINDOW : _HOP]) / _WINDOW


def _flux(spectrum: np.ndarray) -> np.ndarray:
    """Return how much the shape of the spectrum [C, F, bins] has changed since the frame before, [C, F]."""
    shape = spectrum / (spectrum.sum(axis=2, keepdims=True) + 1e-9)
    return np.abs(np.diff(shape, axis=1, prepend=shape[:, :1])).sum(axis=2)


def _quality(spectrum: np.ndarray, zero_crossings: np.ndarray, flux: np.ndarray) -> list[np.ndarray]:
    """Return 6 x [M]: centroid and roll-off (kHz / 4), flatness, zero crossings, alpha ratio, flux."""
    power = spectrum**2
    hertz = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=_WINDOW)
    low = power[(hertz >= 50) & (hertz < 1000)].sum(axis=0)
    high = power[(hertz >= 1000) & (hertz < 5000)].sum(axis=0)
    return [
        librosa.feature.spectral_centroid(S=spectrum, sr=SAMPLE_RATE)[0] / 4000,
        librosa.feature.spectral_rolloff(S=spectrum, sr=SAMPLE_RATE)[0] / 4000,
        np.log10(librosa.feature.spectral_flatness(S=spectrum)[0]) / 3,
        zero_crossings * 4,
        np.clip(np.log10((low + 1e-9) / (high + 1e-9)), -3, 3),
        flux,
    ]


def _timbre(spectrum: np.ndarray) -> np.ndarray:
    """Return MFCC 1..12 of the frames of a spectrum [bins, M], [12, M]; 0 is the loudness, counted elsewhere."""
    mel = _mel_filters() @ spectrum**2
    return librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=13)[1:] / 50


@functools.cache
def _mel_filters() -> np.ndarray:
    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_WINDOW, n_mels=40)


def _contour(track: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return 9 statistics of a track [F] where the mask holds; zeros where that is less than two frames.

    Mean, deviation, 10th, 50th and 90th percentile, slope per second, mean step between
    neighbours (jitter, shimmer), deviation of the steps, end minus beginning.
    """
    if mask.sum() < 2:
        return np.zeros(9)
    values = track[mask]
    seconds = np.flatnonzero(mask) * _HOP / SAMPLE_RATE
    slope = np.cov(seconds, values, bias=True)[0, 1] / seconds.var()
    steps = np.diff(track)[mask[1:] & mask[:-1]]
    third = max(1, len(values) // 3)
    of_steps = (np.abs(steps).mean(), steps.std()) if len(steps) else (0.0, 0.0)
    rise = values[-third:].mean() - values[:third].mean()
    return np.array([values.mean(), values.std(), *np.percentile(values, [10, 50, 90]), slope, *of_steps, rise])


def _timing(mask: np.ndarray) -> np.ndarray:
    """Return 4 numbers of a mask [F]: share, runs per second / 4, longest run and longest gap in seconds."""
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=1 - int(mask[0]), append=1 - int(mask[-1])))
    lengths = np.diff(edges) * _HOP / SAMPLE_RATE  # runs and gaps take turns
    runs, gaps = (lengths[0::2], lengths[1::2]) if mask[0] else (lengths[1::2], lengths[0::2])
    seconds = len(mask) * _HOP / SAMPLE_RATE
    return np.array([mask.mean(), len(runs) / seconds / 4, runs.max(initial=0), gaps.max(initial=0)])


def _moments(tracks: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means [K] and deviations [K] of tracks [K, F] where the mask holds; zeros where it never does."""
    if not mask.any():
        return np.zeros(len(tracks)), np.zeros(len(tracks))
    values = tracks[:, mask]
    return values.mean(axis=1), values.std(axis=1)
