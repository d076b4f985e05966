"""The driver on real files: what is made, what is skipped, and what a bad clip does to the others."""

import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from affect.au_json import AuAnalysis, au_json_path, read_au_json, write_au_json
from affect.schema import Modality
from affect.store import FeatureSpec, FeatureStore
from extractors.au_text import describe_clip
from extractors.clip import Sources
from extractors.encoders import build_encoder
from extractors.media import Media, MediaTask
from extractors.pipeline import Plan, decode_all, run

NAMES = {
    Modality.FRAME: "DCT",
    Modality.FACE: "DCT",
    Modality.AUDIO: "PROSODY",
    Modality.AU: "HASHED_NGRAMS",
}


def encoder(stream):
    return build_encoder(stream, NAMES[stream])


def plan(tmp_path, names, sources, streams=tuple(NAMES), **settings):
    specs = {stream: FeatureSpec(stream, NAMES[stream], encoder(stream).dim) for stream in streams}
    return Plan("toy", names, sources, FeatureStore(tmp_path / "features", "toy"), specs, **settings)


def write_video(path: Path, frames: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for i in range(frames):
            picture = np.full((64, 64, 3), 20 * i % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_table(path: Path, frames: int = 12, success: int = 1) -> None:
    rows = [f"{i + 1}, 0, {i / 10:.3f}, 0.98, {success}, {1 + i % 5:.2f}, 0.50" for i in range(frames)]
    path.write_text("\n".join(["frame, face_id, timestamp, confidence, success, AU12_r, AU04_r", *rows]) + "\n")


@pytest.fixture
def sources(tmp_path):
    """Clips a, b and c: video without sound, wav, OpenFace table; the table of c has no face."""
    folders = {kind: tmp_path / kind for kind in ("video", "audio", "openface")}
    for folder in folders.values():
        folder.mkdir()
    for name in "abc":
        write_video(folders["video"] / f"{name}.mp4")
        write_table(folders["openface"] / f"{name}.csv", success=int(name != "c"))
        soundfile.write(folders["audio"] / f"{name}.wav", np.sin(np.arange(16000) / 20), 16000)
    return Sources(folders["video"], folders["audio"], None, folders["openface"], au_root=tmp_path / "au")


def test_every_stage_runs_and_a_faceless_clip_keeps_its_sound(tmp_path, sources):
    p = plan(tmp_path, list("abc"), sources)
    report = run(p, describe_clip, encoder)
    assert not report.failures
    rows = {stream: [len(p.store.read(p.specs[stream], name)) for name in "abc"] for stream in p.specs}
    assert rows[Modality.FRAME] == rows[Modality.AUDIO] == [8, 8, 8]
    assert rows[Modality.AU] == [8, 8, 0]
    assert report.clips["c"].faceless
    analysis = read_au_json(au_json_path(tmp_path / "au", "toy", "a"))
    assert len(analysis.summary_description) == 8
    table = (p.store.root / "clips.csv").read_text().splitlines()
    assert table[0] == "name,status,faceless,silent,reader,seconds"
    assert table[3].startswith("c,done,True,False,")


def test_what_is_there_is_not_made_again(tmp_path, sources):
    p = plan(tmp_path, list("ab"), sources)
    run(p, describe_clip, encoder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.npy")}
    p.store.path(p.specs[Modality.AUDIO], "b").write_bytes(b"cut")
    report = run(plan(tmp_path, list("abc"), sources), describe_clip, encoder)
    assert report.clips["a"].made == []
    assert report.clips["b"].made == ["audio"]  # what is not whole counts as missing
    assert len(report.clips["c"].made) == 4
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.stem for path in before if after[path] != before[path]] == ["b"]


def test_bad_clips_are_listed_and_the_others_go_on(tmp_path, sources):
    (sources.video_root / "a.mp4").write_text("this is no video")
    (sources.openface_root / "b.csv").write_text("frame, success\n1, 1\n")
    (sources.audio_root / "c.wav").write_bytes(b"RIFF")
    names = ["a", "b", "c", "../up", "absent"]
    report = run(plan(tmp_path, names, sources), describe_clip, encoder)
    stages = {(name, stage) for name, stage, _ in report.failures}
    assert stages == {
        ("a", "frame"),
        ("a", "face"),
        ("b", "au_json"),
        ("c", "audio"),
        ("../up", "name"),
        ("absent", "au_json"),
        ("absent", "frame"),
        ("absent", "face"),
        ("absent", "audio"),
    }
    assert all(reason and "\n" not in reason for _, _, reason in report.failures)
    store = plan(tmp_path, names, sources).store
    assert len(store.read(FeatureSpec(Modality.AUDIO, "PROSODY", encoder(Modality.AUDIO).dim), "a")) == 8
    text = (store.root / "failures.csv").read_text()
    assert text.startswith("clip,stage,reason\n")
    assert "../up" in text


def test_a_video_without_sound_counts_as_silent(tmp_path, sources):
    only_video = Sources(sources.video_root, None, None, sources.openface_root, au_root=tmp_path / "au")
    p = plan(tmp_path, ["a"], only_video, [Modality.AUDIO])
    assert not run(p, describe_clip, encoder).failures
    assert p.store.read(p.specs[Modality.AUDIO], "a").shape[0] == 0
    assert "a,done,False,True" in (p.store.root / "clips.csv").read_text()


def test_a_json_without_sentences_is_described_and_a_broken_one_is_listed(tmp_path, sources):
    path = au_json_path(tmp_path / "au", "toy", "a")
    p = plan(tmp_path, ["a", "b"], sources, [Modality.AU], stages=("au_json",))
    run(p, describe_clip, encoder)
    assert read_au_json(path).summary_description == {}
    features = plan(tmp_path, ["a", "b"], sources, [Modality.AU], stages=("features",))
    reasons = [reason for _, _, reason in run(features, describe_clip, encoder).failures]
    assert len(reasons) == 2
    assert "summary_description" in reasons[0]
    path.write_text("[1]")
    report = run(plan(tmp_path, ["a", "b"], sources, [Modality.AU]), describe_clip, encoder)
    assert [(name, stage) for name, stage, _ in report.failures] == [("a", "au_json")]
    assert report.clips["b"].made == ["au_text", "au"]


def test_sentences_follow_the_peak_when_frames_do(tmp_path, sources):
    write_table(sources.openface_root / "a.csv", frames=60)
    p = plan(tmp_path, ["a"], sources, [Modality.AU], sampling="emotion_peak")
    run(p, describe_clip, encoder)
    analysis = read_au_json(au_json_path(tmp_path / "au", "toy", "a"))
    peak = analysis.au_info["peak_frames"][0]["peak_index"]
    assert str(peak + 1) in analysis.summary_description


def test_face_arrays_are_used_where_they_are_given(tmp_path, sources):
    faces = tmp_path / "faces"
    (faces / "b").mkdir(parents=True)
    np.save(faces / "a.npy", np.random.default_rng(0).integers(0, 255, (20, 112, 112, 3), np.uint8))
    np.save(faces / "b" / "b.npy", np.zeros((3, 112, 112, 3), np.uint8))
    np.save(faces / "c.npy", np.zeros((3, 112, 112)))
    with_faces = Sources(sources.video_root, face_root=faces)
    p = plan(tmp_path, list("abc"), with_faces, [Modality.FACE])
    report = run(p, describe_clip, encoder)
    assert [name for name, _, _ in report.failures] == ["c"]
    assert [len(p.store.read(p.specs[Modality.FACE], name)) for name in "ab"] == [8, 8]


def test_files_of_other_tools_keep_their_fields(tmp_path, sources, shared):
    path = au_json_path(tmp_path / "au", "toy", "a")
    analysis = read_au_json(shared / "data/merfactory/default_au_analysis.json")
    write_au_json(analysis, path)
    report = run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clip, encoder)
    assert [(name, stage) for name, stage, _ in report.failures] == [("a", "au_text")]  # no frames to describe
    assert read_au_json(path).extra["chronological_emotion_peaks"]


def test_a_json_that_measured_a_few_frames_only_is_described_at_those(tmp_path, sources):
    path = au_json_path(tmp_path / "au", "toy", "a")
    frames = [{"frame": number, "active_aus": {"AU12_r": 2.0}} for number in (1, 35, 69)]
    write_au_json(AuAnalysis(per_frame_au_descriptions=frames, au_info={"total_frames": 90}), path)
    assert not run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clip, encoder).failures
    assert list(read_au_json(path).summary_description) == ["1", "35", "69"]


def test_frames_around_a_peak_are_never_taken_where_the_peak_is_not_known(tmp_path, sources):
    (sources.openface_root / "b.csv").unlink()
    p = plan(tmp_path, ["a", "b"], sources, [Modality.FRAME], sampling="emotion_peak")
    p.specs[Modality.FRAME] = FeatureSpec(Modality.FRAME, "DCT", 128, sampling="emotion_peak")
    failed = {(name, stage) for name, stage, _ in run(p, describe_clip, encoder).failures}
    assert failed == {("b", "au_json"), ("b", "frame")}
    assert p.store.missing(p.specs[Modality.FRAME], ["a", "b"]) == ["b"]


def test_remade_sentences_remake_their_features(tmp_path, sources):
    p = plan(tmp_path, ["a"], sources, [Modality.AU])
    run(p, describe_clip, encoder)
    before = p.store.read(p.specs[Modality.AU], "a")
    path = au_json_path(tmp_path / "au", "toy", "a")
    analysis = read_au_json(path)
    analysis.per_frame_au_descriptions = [
        {**f, "active_aus": {"AU26_r": 4.0}} for f in analysis.per_frame_au_descriptions
    ]
    write_au_json(analysis, path)
    again = plan(tmp_path, ["a"], sources, [Modality.AU], stages=("au_text", "features"), overwrite=True)
    run(again, describe_clip, encoder)
    assert not np.array_equal(p.store.read(p.specs[Modality.AU], "a"), before)


def test_one_stream_at_a_time_keeps_what_is_known_of_the_others(tmp_path, sources):
    run(plan(tmp_path, ["c"], sources, [Modality.FACE, Modality.AU]), describe_clip, encoder)
    run(plan(tmp_path, ["c"], sources, [Modality.AUDIO]), describe_clip, encoder)
    assert "c,done,True,False" in (tmp_path / "features" / "toy" / "clips.csv").read_text()


def test_an_encoder_that_fails_on_one_clip_keeps_the_others(tmp_path, sources):
    class Fussy:
        dim = 128

        def provenance(self):
            return {}

        def __call__(self, items):
            if any(len(item) == 3 for item in items):
                raise KeyError("three")
            return [np.zeros((len(item), 128), np.float32) for item in items]

    faces = tmp_path / "faces"
    faces.mkdir()
    np.save(faces / "a.npy", np.zeros((9, 4, 4, 3), np.uint8))
    np.save(faces / "b.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.save(faces / "c.npy", np.zeros((5, 0, 0, 3), np.uint8))
    p = plan(tmp_path, list("abc"), Sources(face_root=faces), [Modality.FACE])
    report = run(p, describe_clip, lambda stream: Fussy())
    assert [name for name, _, _ in report.failures] == ["c"]
    assert report.clips["b"].faceless is False
    assert p.store.read(p.specs[Modality.FACE], "b").shape == (0, 128)


def hang(task: MediaTask) -> Media:
    if task.name == "hangs":
        time.sleep(600)
    if task.name == "dies":
        import os

        os._exit(3)
    return Media(reader="toy")


def test_a_clip_that_hangs_or_kills_its_worker_costs_only_itself(monkeypatch):
    monkeypatch.setattr("extractors.pipeline.load_media", hang)
    tasks = [MediaTask(name, None, None, (Modality.FRAME,)) for name in ("x", "hangs", "y", "dies", "z")]
    media = {task.name: media for task, media in decode_all(tasks, workers=2, time_limit=3)}
    assert list(media) == ["x", "hangs", "y", "dies", "z"]
    assert {name for name, m in media.items() if m.errors} == {"hangs", "dies"}
    assert "longer than 3 s" in media["hangs"].errors[Modality.FRAME]
