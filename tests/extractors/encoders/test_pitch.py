"""YIN: tones have their pitch, noise and silence have finite numbers."""

import numpy as np
import pytest

from extractors.encoders.embedded import yin

RATE = 16_000


def tone(hertz: float, harmonics: int = 6, count: int = 1024) -> np.ndarray:
    phase = 2 * np.pi * hertz * np.arange(count) / RATE
    return sum(np.sin(k * phase) / k for k in range(1, harmonics + 1)).astype(np.float32)


@pytest.mark.parametrize("hertz", [70.0, 110.3, 233.1, 480.0])
def test_a_tone_has_its_pitch(hertz):
    (found,) = yin(tone(hertz)[None], RATE, 65, 500)
    assert found == pytest.approx(hertz, rel=0.003)


def test_the_first_deep_dip_counts_not_a_multiple_of_the_period():
    (found,) = yin((tone(200) + 0.02 * tone(100))[None], RATE, 65, 500)
    assert found == pytest.approx(200, rel=0.01)


def test_windows_do_not_touch_each_other():
    windows = np.stack([tone(90), tone(300), np.zeros(1024, np.float32)])
    alone = [yin(window[None], RATE, 65, 500)[0] for window in windows]
    np.testing.assert_allclose(yin(windows, RATE, 65, 500), alone, rtol=1e-5)


def test_noise_silence_and_steady_pressure_have_finite_pitches_within_the_bounds():
    noise = np.random.default_rng(0).normal(size=(50, 1024)).astype(np.float32)
    found = yin(np.concatenate([noise, np.zeros((1, 1024), np.float32), np.ones((1, 1024), np.float32)]), RATE, 65, 500)
    assert np.isfinite(found).all()
    assert (found > 60).all() and (found < 540).all()
