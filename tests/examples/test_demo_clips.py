"""The demo's own clips: real files, the same for the same seed, and solvable only from face and voice together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import cv2
import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy.signal import find_peaks

from examples.demo import clips as demo_clips
from examples.demo.face import DRAWN_UNITS, SIZE, draw_person, film
from examples.demo.voice import MANNERS, RATE, draw_speaker, speak
from extractors.encoders.embedded import yin

COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    demo_clips.make_clips(root, seed=3, count=COUNT, processes=1)
    return root


@pytest.fixture(scope="module")
def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "clips.csv")


def read_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_units(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, skipinitialspace=True)


def test_every_clip_is_a_playable_mp4_of_two_seconds(root: Path, table: pd.DataFrame):
    for name in table.name:
        with av.open(str(root / "video" / f"{name}.mp4")) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec.canonical_name, audio.codec.canonical_name) == ("h264", "aac")
            assert (video.average_rate, video.width, video.height) == (25, SIZE, SIZE)
            assert container.duration / av.time_base == pytest.approx(2, abs=0.1)
        assert len(read_frames(root / "video" / f"{name}.mp4")) == 50


def test_wav_is_the_sound_of_the_mp4(root: Path, table: pd.DataFrame):
    name = table.name[0]
    sound, rate = soundfile.read(root / "audio" / f"{name}.wav")
    assert (sound.shape, rate) == ((32_000,), 16_000)
    with av.open(str(root / "video" / f"{name}.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    shared_length = min(len(sound), len(heard))
    assert shared_length > 31_000
    best = np.abs(np.correlate(heard[:shared_length], sound[1100 : shared_length - 1100], "valid")).max()
    assert best > 0.9 * np.sum(sound**2)


def test_openface_table_has_the_columns_of_a_real_one(root: Path, table: pd.DataFrame, shared: Path):
    real = (shared / "data/openface/featureextraction/grid_bbaf2n.csv").read_text().splitlines()
    ours = (root / "openface" / f"{table.name[0]}.csv").read_text().splitlines()
    assert ours[0] == real[0]
    assert [len(cell) for cell in ours[1].split(",")] == [len(cell) for cell in real[1].split(",")]


def test_openface_values_stay_in_range_and_lost_frames_show_nothing(root: Path, table: pd.DataFrame):
    measured = pd.concat([read_units(root / "openface" / f"{name}.csv") for name in table.name])
    strength = measured.filter(regex="_r$")
    assert len(measured) == COUNT * 50 and strength.min(axis=None) >= 0 and strength.max(axis=None) <= 5
    assert set(measured.filter(regex="_c$").to_numpy().ravel()) == {0.0, 1.0}
    lost = measured[measured.success == 0]
    assert 0 < len(lost) < 0.1 * len(measured)
    assert (lost.confidence < 0.1).all() and not lost.filter(regex="AU").any(axis=None)


def test_same_seed_gives_the_same_clips_in_two_processes(root: Path, table: pd.DataFrame, tmp_path: Path):
    demo_clips.make_clips(tmp_path, seed=3, count=COUNT, processes=2)
    assert (tmp_path / "clips.csv").read_bytes() == (root / "clips.csv").read_bytes()
    for name in table.name:
        for file in (f"audio/{name}.wav", f"openface/{name}.csv"):
            assert (tmp_path / file).read_bytes() == (root / file).read_bytes()
        video = f"video/{name}.mp4"
        assert np.array_equal(read_frames(tmp_path / video), read_frames(root / video))


def test_other_seed_gives_other_people_and_other_words():
    one, other = (demo_clips.plan_scenes(seed, 60, 0.25) for seed in (0, 1))
    assert [scene.subtitle for scene in one] != [scene.subtitle for scene in other]
    rngs = [np.random.default_rng([seed, 1, 0]) for seed in (0, 1)]
    assert len({draw_person(rng).width for rng in rngs}) == 2


@pytest.mark.parametrize(("count", "share"), [(12, 0.25), (50, 0.25), (240, 0.25), (60, 0.01), (60, 0.99)])
def test_nobody_is_in_both_splits_and_emotions_are_balanced_in_each(count: int, share: float):
    scenes = demo_clips.plan_scenes(0, count, share)
    splits = {name: [scene for scene in scenes if scene.split == name] for name in ("train", "test")}
    people = [{scene.identity for scene in part} for part in splits.values()]
    assert all(people) and not people[0] & people[1]
    for part in splits.values():
        shown = Counter(scene.emotion for scene in part)
        assert set(shown) == set(demo_clips.EMOTIONS) and max(shown.values()) - min(shown.values()) <= 3


def test_share_of_test_clips_is_the_one_asked_for():
    scenes = demo_clips.plan_scenes(0, 240, 0.25)
    assert sum(scene.split == "test" for scene in scenes) == 60


def test_neither_face_nor_voice_alone_tells_the_emotion():
    faces, voices = zip(*demo_clips.EMOTIONS.values(), strict=True)
    assert set(Counter(faces).values()) == set(Counter(voices).values()) == {2}
    assert len(set(demo_clips.EMOTIONS.values())) == 6
    assert set(faces) == set(demo_clips.FACES) and set(voices) == set(MANNERS)


def test_table_names_the_face_and_voice_of_each_emotion(table: pd.DataFrame):
    assert list(table) == ["name", "split", "identity", "subtitle", "emotion", "face", "voice", "openset"]
    for row in table.itertuples():
        assert (row.face, row.voice) == demo_clips.EMOTIONS[row.emotion]
        assert row.openset == f"['{row.emotion}']"
    lengths = [len(subtitle.split()) for subtitle in table.subtitle]
    assert min(lengths) >= 2 and max(lengths) > 15


def test_cascade_finds_the_face_in_nearly_every_frame(root: Path, table: pd.DataFrame):
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    found = []
    for name in table.name:
        for frame in read_frames(root / "video" / f"{name}.mp4")[::5]:
            boxes = cascade.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 1.1, 5, minSize=(32, 32))
            found.append(len(boxes) == 1)
    assert np.mean(found) >= 0.95


def test_strongest_peak_shows_the_units_of_the_face(root: Path, table: pd.DataFrame):
    for name, face in zip(table.name, table.face, strict=True):
        strength = read_units(root / "openface" / f"{name}.csv").filter(regex="_r$")
        total = strength.sum(axis=1)
        peaks, _ = find_peaks(total, height=0.8, distance=20)
        assert len(peaks) >= 1
        peak = strength.loc[peaks[np.argmax(total[peaks])]]
        own = {f: np.mean([peak[f"{unit}_r"] for unit in units]) for f, units in demo_clips.FACES.items()}
        assert max(own, key=own.get) == face


@pytest.mark.parametrize("unit", DRAWN_UNITS)
def test_each_unit_moves_the_drawn_face(unit: str):
    def still(**moved: float) -> np.ndarray:
        rng = np.random.default_rng(1)
        units = {name: np.array([moved.get(name, 0.0)]) for name in DRAWN_UNITS}
        return next(film(draw_person(rng), units, rng)).astype(int)

    assert np.abs(still(**{unit: 3.0}) - still()).max() > 25


def test_picture_and_units_do_not_depend_on_the_voice(tmp_path: Path):
    scene = demo_clips.plan_scenes(3, COUNT, 0.25)[0]
    for folder, voice in (("a", "lively"), ("b", "harsh")):
        demo_clips.make_clip(tmp_path / folder, 3, 0, replace(scene, voice=voice))
    files = {
        kind: [tmp_path / f / kind / f"{scene.name}.{end}" for f in "ab"] for kind, end in demo_clips.FOLDERS.items()
    }
    assert files["audio"][0].read_bytes() != files["audio"][1].read_bytes()
    assert files["openface"][0].read_bytes() == files["openface"][1].read_bytes()
    assert np.array_equal(*map(read_frames, files["video"]))


def test_voice_does_not_depend_on_the_face(tmp_path: Path):
    scene = demo_clips.plan_scenes(3, COUNT, 0.25)[0]
    for folder, face in (("a", "smile"), ("b", "frown")):
        demo_clips.make_clip(tmp_path / folder, 3, 0, replace(scene, face=face))
    wavs = [(tmp_path / folder / "audio" / f"{scene.name}.wav").read_bytes() for folder in "ab"]
    assert wavs[0] == wavs[1]


def test_manners_of_speaking_differ_in_level_pitch_and_its_movement():
    said = {name: [] for name in MANNERS}
    for person in range(4):
        speaker = draw_speaker(np.random.default_rng(person))
        for name, manner in MANNERS.items():
            sound = speak(speaker, manner, 2, np.random.default_rng([person, 1]))
            assert sound.shape == (2 * RATE,) and 0.02 < np.abs(sound).max() <= 1
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(sound, 512), 1024)[::256]
            pitch = yin(windows, RATE, 65, 500)
            level = librosa.feature.rms(y=sound, frame_length=1024, hop_length=256)[0]
            octaves = np.log2(pitch[level > 0.25 * level.max()])
            said[name].append([20 * np.log10(level.max()), np.median(octaves), np.abs(np.diff(octaves)).mean()])
    lively, soft, harsh = (np.mean(said[name], axis=0) for name in ("lively", "soft", "harsh"))
    assert soft[0] + 4 < lively[0] < harsh[0]
    assert lively[1] > soft[1] + 0.25
    assert soft[2] < lively[2] < harsh[2]


@pytest.mark.parametrize(("count", "share"), [(11, 0.25), (60, 0.0), (60, 1.0)])
def test_impossible_plan_is_refused(tmp_path: Path, count: int, share: float):
    with pytest.raises(ValueError, match="expected at least 12 clips"):
        demo_clips.make_clips(tmp_path, seed=0, count=count, test_share=share)
    assert not list(tmp_path.iterdir())
