"""Reading sound from sound files and from videos, and cutting it into clips."""

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from affect.core.errors import MediaError
from extractors.media.decode import load_audio, sound_clips


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def loudest_hertz(sound: np.ndarray, rate: int = 16_000) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * rate / len(sound))


def write_container(path: Path, sound: np.ndarray | None, rate: int = 44_100, codec: str = "aac") -> Path:
    """Write a video of five gray pictures, with sound [N] in both channels or with none."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        sounds = container.add_stream(codec, rate=rate, layout="stereo") if sound is not None else None
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if sounds is not None:
            frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]), format="fltp", layout="stereo")
            frame.sample_rate = rate
            container.mux(sounds.encode(frame))
            container.mux(sounds.encode())
    return path


def test_two_channels_are_averaged_and_resampled(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(440, 3, 8000), np.zeros(24_000)], axis=1), 8000)
    sound = load_audio(path)
    assert sound.dtype == np.float32
    assert sound.shape == (48_000,)
    assert loudest_hertz(sound) == pytest.approx(440, abs=1)
    assert np.abs(sound[1000:-1000]).max() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("file, codec", [("clip.mp4", "aac"), ("clip.mkv", "pcm_s16le"), ("clip.avi", "mp2")])
def test_the_sound_of_a_video_keeps_its_pitch(tmp_path, file, codec):
    sound = load_audio(write_container(tmp_path / file, tone(440, 2, 44_100), codec=codec))
    assert len(sound) == pytest.approx(32_000, abs=1200)  # codecs pad to whole blocks
    assert loudest_hertz(sound[2000:30_000]) == pytest.approx(440, abs=1)
    assert np.abs(sound[2000:30_000]).max() == pytest.approx(0.5, abs=0.05)


def test_a_video_without_sound_has_none(tmp_path):
    assert load_audio(write_container(tmp_path / "mute.mp4", None)) is None


def test_silence_is_sound(tmp_path):
    sound = load_audio(write_container(tmp_path / "silent.mp4", np.zeros(44_100, np.float32)))
    assert len(sound) > 10_000
    assert not sound.any()


def test_a_wav_file_without_samples_has_no_sound(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert load_audio(tmp_path / "none.wav") is None


def test_a_container_under_the_name_of_a_wav_file_is_read(tmp_path):
    path = write_container(tmp_path / "clip.mp4", tone(440, 2, 44_100)).rename(tmp_path / "clip.wav")
    assert loudest_hertz(load_audio(path)[2000:30_000]) == pytest.approx(440, abs=1)


def test_half_a_wav_file_gives_the_half_that_is_there(tmp_path):
    path = tmp_path / "half.wav"
    soundfile.write(path, tone(440, 2, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[:32_000])
    assert len(load_audio(path)) == pytest.approx(16_000, abs=100)


@pytest.mark.parametrize("file", ["text.wav", "text.mp4", "missing.wav", "empty.wav", "empty.mkv"])
def test_what_is_no_sound_is_refused_in_one_sentence(tmp_path, file):
    if file.startswith("text"):
        (tmp_path / file).write_text("no sound at all\n" * 200)
    elif file.startswith("empty"):
        (tmp_path / file).touch()
    with pytest.raises(MediaError, match=str(tmp_path / file)) as caught:
        load_audio(tmp_path / file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rate", "samples", "said"),
    [
        (1, 32_000, "1,000 to 768,000 samples a second"),
        (1_000_000_000, 9, "768,000 samples"),
        (1_000, 300, "at most 0.03 MB of memory"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.mka"])
def test_sound_of_an_absurd_rate_or_length_is_refused_before_it_is_read(
    tmp_path, monkeypatch, rate, samples, said, name
):
    """1,000 samples a second are resampled to sixteen times as many."""
    with wave.open(str(tmp_path / name), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(2 * samples))
    monkeypatch.setenv("AFFECT_LIMITS", "memory_mb=0.03")
    with pytest.raises(MediaError, match=said):
        load_audio(tmp_path / name)


def test_sound_that_is_not_a_number_is_refused(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.2], np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="NaN or infinity"):
        load_audio(tmp_path / "nan.wav")


def test_clips_start_at_equal_steps_and_end_with_the_sound():
    sound = np.arange(16_000 * 9, dtype=np.float32)
    clips = sound_clips(sound)
    assert clips.shape == (8, 32_000)
    assert clips[:, 0].tolist() == [k * 16_000 for k in range(8)]
    assert clips[-1, -1] == sound[-1]
    assert np.array_equal(np.diff(clips, axis=1), np.ones((8, 31_999)))


@pytest.mark.parametrize("samples", [1, 31_999, 32_000])
def test_a_short_sound_is_padded_and_all_its_clips_are_the_same(samples):
    clips = sound_clips(np.ones(samples, np.float32))
    assert clips.shape == (8, 32_000)
    assert clips.sum(axis=1).tolist() == [samples] * 8
    assert clips[:, :samples].all()


def test_the_number_of_clips_may_be_set():
    assert sound_clips(np.zeros(64_000), count=1).shape == (1, 32_000)
    assert sound_clips(np.arange(96_000.0), count=3)[:, 0].tolist() == [0, 32_000, 64_000]


def test_real_wav_files_with_extra_chunks_are_read_whole(shared):
    for path in sorted((shared / "data/speech/ravdess").glob("*.wav"))[::8]:
        with wave.open(str(path)) as header:
            seconds = header.getnframes() / header.getframerate()
        sound = load_audio(path)
        assert len(sound) == pytest.approx(seconds * 16_000, abs=2)
        assert 0.01 < np.abs(sound).max() <= 1


def test_real_videos_give_the_sound_they_have(shared):
    folder = shared / "data/video"
    assert len(load_audio(folder / "grid_bbaf2n.mpg")) / 16_000 == pytest.approx(2.98, abs=0.05)
    # shorter than its pictures, which last 6.4 s
    assert len(load_audio(folder / "pyfeat_face_noface.mov")) / 16_000 == pytest.approx(3.97, abs=0.05)
    silence = load_audio(folder / "pyfeat_WolfgangLanger_Pexels.mp4")
    assert len(silence) / 16_000 == pytest.approx(19.7, abs=0.05)
    assert not silence.any()
