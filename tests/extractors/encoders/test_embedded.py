"""The embedded encoders: what decode workers do for them, and numbers that must not change."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extractors.encoders.embedded import DctEncoder, HashedNgramEncoder, ProsodyEncoder

# fmt: off
VOICE_STATISTICS = [
    0.2131, 0.4458, -0.437, 0.3072, 0.7945, -0.5763, 0.0335, 0.0366, -0.9199,  # pitch
    2.7181, 0.4375, 2.0775, 3.0339, 3.038, -0.1054, 0.0427, 0.1279, -0.2524,  # loudness
    0.6733, 0.3713, 0.56, 0.34, 0.9901, 0.2475, 1.72, 0.02,  # timing of the voice, of all that is audible
    0.6496, 0.5683, 1.1999, -0.6931, 0.7616, 0.9832, 0.5025,  # means: periodicity, centroid, …
    1.2434, 0.4615, -0.0117, -0.0522, 0.0254, 0.0462, 0.0484, 0.029, 0.0038, -0.0193, -0.0168, 0.0023,  # … MFCC
    0.3946, 0.312, 0.4654, 0.8241, 0.8457, 1.1889, 0.1294,  # deviations of the same
    1.4231, 0.6496, 0.2013, 0.299, 0.1855, 0.1697, 0.1754, 0.1163, 0.0969, 0.0912, 0.0776, 0.0775,
]
# fmt: on


def voice() -> np.ndarray:
    """Two seconds of a gliding, interrupted tone with eleven harmonics, over noise that stops before the end."""
    time = np.arange(32_000) / 16_000
    phase = 2 * np.pi * np.cumsum(120 + 60 * np.sin(3 * time)) / 16_000
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 12))
    breath = np.random.default_rng(0).normal(0, 0.02, len(time))
    return (0.2 * harmonics * (np.sin(7 * time) > -0.3) + breath * (time < 1.7)).astype(np.float32)


def test_features_of_sound_stay_those_that_are_on_disk():
    (row,) = ProsodyEncoder.prepare(voice()[None])
    np.testing.assert_allclose(row, VOICE_STATISTICS, atol=1e-4)


def test_sounds_do_not_touch_each_other_within_an_item():
    clips = np.stack([voice(), np.zeros(32_000, np.float32), 0.1 * voice()[::-1]])
    together = ProsodyEncoder.prepare(clips)
    for clip, row in zip(clips, together, strict=True):
        np.testing.assert_allclose(ProsodyEncoder.prepare(clip[None])[0], row, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.5


def test_what_nobody_hears_does_not_count():
    early, late = np.arange(32_000) < 16_000, np.arange(32_000) > 18_000
    hiss = 1e-6 * np.random.default_rng(1).normal(size=32_000) * late
    with_hiss, without = ProsodyEncoder.prepare(np.stack([voice() * early + hiss, voice() * early]).astype(np.float32))
    np.testing.assert_allclose(with_hiss, without, atol=1e-5)
    loud = ProsodyEncoder.prepare((voice() * early + 1e4 * hiss)[None].astype(np.float32))[0]
    assert np.abs(loud - without).max() > 0.1


def test_pictures_are_sent_small_and_gray():
    frames = np.random.default_rng(0).integers(0, 256, (3, 96, 144, 3), dtype=np.uint8)
    pictures = DctEncoder.prepare(frames)
    assert (pictures.shape, pictures.dtype) == ((3, 48, 48), np.uint8)
    gray = frames @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(pictures, gray.reshape(3, 48, 2, 48, 3).mean(axis=(2, 4)), atol=1.1)
    assert DctEncoder.prepare(frames[:0]).shape == (0, 48, 48)


def test_sentences_are_sent_as_they_are():
    assert HashedNgramEncoder.prepare(["brow raised"]) == ["brow raised"]


@pytest.mark.parametrize(
    "encoder, item, found",
    [
        (DctEncoder(), np.zeros((2, 48, 48, 3), np.uint8), r"\[2, 48, 48, 3\], expected \[T, 48, 48\]"),
        (ProsodyEncoder(), np.zeros((8, 32_000), np.float32), r"\[8, 32000\], expected \[T, 64\]"),
        (ProsodyEncoder(), None, r"None, expected \[T, 64\]"),
    ],
)
def test_an_item_that_is_not_prepared_is_refused(encoder, item, found):
    with pytest.raises(ValueError, match=f"an item is {found}; call prepare"):
        encoder([item])


def test_workers_get_what_prepares_without_torch():
    prepares = pickle.dumps([encoder.prepare for encoder in (DctEncoder(), ProsodyEncoder(), HashedNgramEncoder())])
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], input=prepares, cwd=root).returncode == 0
