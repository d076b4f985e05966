"""Pitch by YIN (de Cheveigné & Kawahara, JASA 111, 2002), with NumPy alone.

librosa's YIN and zero crossings call functions that numba compiles and keeps on disk (stencils); what it keeps is
now and then broken, and then every process of that installation that calls them dies with a segmentation fault.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import fft

THRESHOLD = 0.1
"""Normalised difference below which the first dip counts as the period."""


def yin(windows: np.ndarray, rate: int, lowest: float, highest: float) -> np.ndarray:
    """Return the pitch in Hz [M] of windows of sound [M, N] at `rate` samples a second, between two pitches in Hz.

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
    deep = dips & (curve < THRESHOLD)
    place = np.where(deep.any(axis=1), deep.argmax(axis=1), curve.argmin(axis=1))
    return rate / (shortest + place + _shift(curve, place))


def _shift(curve: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return where the parabola through each place [M] of a curve [M, K] and its neighbours has its end, -1 to 1."""
    rows, inner = np.arange(len(curve)), np.clip(place, 1, curve.shape[1] - 2)
    left, middle, right = (curve[rows, inner + step] for step in (-1, 0, 1))
    bend, slope = left + right - 2 * middle, (right - left) / 2
    bent = (np.abs(slope) < np.abs(bend)) & (inner == place)
    return np.where(bent, -slope / np.where(bent, bend, 1), 0)
