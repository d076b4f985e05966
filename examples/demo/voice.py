"""A synthesised voice for the demo's clips: babble with a speaker's sound and a chosen way of speaking.

Source and filter after Fant (Acoustic Theory of Speech Production, 1960): a train of glottal pulses and breath noise
goes through the resonances of a vocal tract, with bursts of noise for consonants. It says syllables, not the words of
the subtitle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RATE = 16_000
"""Samples in a second."""

_VOWELS = np.array(  # first three formants in Hz of a, e, i, o, u and a neutral vowel of an adult male
    [[730, 1200, 2500], [530, 1850, 2500], [290, 2250, 2950], [560, 900, 2450], [320, 850, 2300], [500, 1450, 2450]]
)
_WIDTHS = np.array([80.0, 100, 140, 220])
_CONSONANTS = ((5200.0, 1800.0), (2600.0, 1400.0), (1300.0, 900.0))  # centre and width of their noise, Hz


@dataclass(frozen=True)
class Speaker:
    """Voice of one person."""

    pitch: float
    """Hz at rest."""
    tract: float
    """Factor on all formants; a short vocal tract is above 1."""
    level: float
    """dB above the average speaker."""
    tempo: float
    """Factor on the syllable rate."""
    breath: float
    """Breath noise as a share of the voice."""


@dataclass(frozen=True)
class Manner:
    """A way of speaking, as changes to the speaker's rest."""

    pitch: float
    """Semitones above rest."""
    movement: float
    """Semitones that the accents of syllables move the pitch."""
    tempo: float
    """Syllables in a second."""
    level: float
    """dB above the average."""
    rough: float
    """Random change of period from pulse to pulse, as a share; loudness changes by five times as much."""
    open_share: float
    """Share of each period in which the glottis is open; a pressed voice has a small one."""


MANNERS = {
    "lively": Manner(pitch=4.5, movement=3.2, tempo=4.9, level=0.0, rough=0.006, open_share=0.6),
    "soft": Manner(pitch=-1.5, movement=0.7, tempo=3.2, level=-9.0, rough=0.008, open_share=0.82),
    "harsh": Manner(pitch=1.0, movement=1.2, tempo=5.0, level=3.5, rough=0.045, open_share=0.36),
}
"""Ways of speaking by the name that the clips' table has for them."""


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """Draw the voice of a new person; low voices come with long vocal tracts."""
    height = rng.uniform(-1, 1)
    return Speaker(
        pitch=150 * 2 ** (0.55 * height + rng.normal(0, 0.08)),
        tract=1.08 + 0.1 * height + rng.normal(0, 0.02),
        level=rng.normal(0, 2.0),
        tempo=rng.uniform(0.9, 1.12),
        breath=rng.uniform(0.01, 0.05),
    )


def speak(speaker: Speaker, manner: Manner, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Speak for `seconds`; returns the sound in -1..1, [N] at RATE."""
    samples = round(seconds * RATE)
    envelope, accents, noise = np.zeros((3, samples))
    vowels = np.zeros((len(_VOWELS), samples))
    for turn, (start, stop) in enumerate(_syllables(speaker, manner, seconds, rng)):
        inside = np.linspace(0, 1, stop - start)
        rise = np.sin(np.pi * inside**0.7) ** 0.8 * rng.uniform(0.7, 1.0)
        envelope[start:stop] += rise
        vowels[rng.integers(len(_VOWELS)), start:stop] += rise
        accent = rng.uniform(-0.2, 0.4) + (-1) ** turn * rng.uniform(0.5, 1.2)
        accents[start:stop] += accent * np.sin(np.pi * inside)
        burst = _burst(rng)[: samples - start]
        noise[start : start + len(burst)] += burst
    declination = np.linspace(0.75, -0.75, samples)
    semitones = manner.pitch + rng.normal(0, 0.8) + manner.movement * rng.uniform(0.8, 1.25) * accents + declination
    voice = _source(speaker.pitch * 2 ** (semitones / 12), speaker, manner, rng) * envelope
    spoken = _tract(voice, vowels, speaker.tract * rng.normal(1, 0.01))
    spoken = spoken / np.sqrt((spoken**2).mean()) + 0.3 * noise
    spoken *= 10 ** ((speaker.level + manner.level + rng.normal(0, 1.5) - 21) / 20)
    return np.clip(spoken + _room(samples, rng), -1, 1)


def _syllables(speaker: Speaker, manner: Manner, seconds: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """First and last sample of each syllable, with a pause in most clips; they may overlap a little."""
    step = 1 / (manner.tempo * speaker.tempo * rng.uniform(0.92, 1.08))
    begin, end = rng.uniform(0.06, 0.22), seconds - rng.uniform(0.06, 0.22)
    starts = np.arange(begin, end - step, step)
    starts = starts + rng.uniform(-0.05, 0.1, len(starts)) * step
    if len(starts) > 4 and rng.random() < 0.7:
        starts = np.delete(starts, rng.integers(2, len(starts) - 1))
    stops = np.minimum(starts + step * rng.uniform(0.75, 1.0, len(starts)), seconds)
    return [(int(a * RATE), int(b * RATE)) for a, b in zip(starts, stops, strict=True)]


def _source(pitch: np.ndarray, speaker: Speaker, manner: Manner, rng: np.random.Generator) -> np.ndarray:
    """Flow of air through the glottis, differentiated; `pitch` is in Hz, [N]."""
    cycles = np.cumsum(pitch) / RATE
    jitter = rng.normal(0, manner.rough, int(cycles[-1]) + 2)  # of each pulse
    cycles += np.interp(cycles, np.arange(len(jitter)), jitter)
    pulse = np.clip(cycles.astype(int), 0, len(jitter) - 1)
    phase = cycles - np.floor(cycles)
    shimmer = np.clip(1 + 5 * rng.normal(0, manner.rough, len(jitter)), 0.2, 2)
    opening = np.clip(phase / manner.open_share, 0, 1)
    flow = opening**2 * (1 - opening) * 6.75 * shimmer[pulse]  # rises slowly, closes at once
    breath = rng.normal(0, speaker.breath * manner.open_share, len(flow)) * (0.3 + flow)
    return np.diff(flow, prepend=0) / manner.open_share + 0.3 * breath


def _tract(voice: np.ndarray, vowels: np.ndarray, factor: float) -> np.ndarray:
    """Send the voice through the resonances of each vowel, each as loud as its row of `vowels` [V, N] says."""
    padded = len(voice) + RATE // 4  # room for the last resonances to fade away
    spectrum = np.zeros(padded // 2 + 1, complex)
    for share, formants in zip(vowels / (vowels.sum(axis=0) + 1e-6), _VOWELS, strict=True):
        if share.any():
            response = _response(np.append(formants, 3500) * factor, _WIDTHS, padded)
            spectrum += np.fft.rfft(voice * share, padded) * response
    return np.fft.irfft(spectrum, padded)[: len(voice)]


def _response(hertz: np.ndarray, width: np.ndarray, length: int) -> np.ndarray:
    """Spectrum of resonances [R] one after the other, each with unit gain at zero frequency (Klatt, 1980)."""
    delay = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    radius = np.exp(-np.pi * width / RATE)
    response = np.ones_like(delay)
    for first, second in zip(-2 * radius * np.cos(2 * np.pi * hertz / RATE), radius**2, strict=True):
        response *= (1 + first + second) / (1 + delay * (first + second * delay))
    return response


def _burst(rng: np.random.Generator) -> np.ndarray:
    """Noise of one consonant, about as loud as a vowel."""
    t = np.arange(int(0.12 * RATE)) / RATE
    hertz, width = _CONSONANTS[rng.integers(len(_CONSONANTS))]
    noise = np.fft.rfft(rng.normal(0, 1, len(t))) * _response(np.array([hertz]), np.array([width]), len(t))
    noise = np.fft.irfft(noise, len(t))
    return noise / noise.std() * np.exp(-(((t - 0.03) / rng.uniform(0.012, 0.03)) ** 2))


def _room(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Quiet noise of a room, louder at low frequencies."""
    spectrum = np.fft.rfft(rng.normal(0, 1, samples)) / (1 + np.linspace(0, 12, samples // 2 + 1))
    return np.fft.irfft(spectrum, samples) * 10 ** (rng.uniform(-46, -36) / 20)
