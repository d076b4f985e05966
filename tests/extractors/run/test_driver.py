"""The driver on real files: what is made, what is skipped, and what a bad clip does to the others."""

import csv
import json
import os
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from affect.core.au_json import AuAnalysis, au_json_path, read_au_json, write_au_json
from affect.core.schema import Modality
from affect.features.provenance import au_makers
from affect.features.store import FeatureError, FeatureStore
from extractors.au.templates import describe_clips
from extractors.encoders.prepare import as_it_is
from extractors.run.session import Settings
from toy_clips import write_table, write_video
from toy_driver import encoder, log_lines, plan, run, state


def test_every_stage_runs_and_a_faceless_clip_keeps_its_sound(tmp_path, sources):
    p = plan(tmp_path, list("abc"), sources)
    report = run(p, describe_clips, encoder)
    assert not report.failures
    rows = {stream: [len(p.store.read(p.specs[stream], name)) for name in "abc"] for stream in p.specs}
    assert rows[Modality.FRAME] == rows[Modality.AUDIO] == [8, 8, 8]
    assert rows[Modality.AU] == [8, 8, 0]
    assert report.faceless == ["a", "b", "c"]  # pictures of noise
    analysis = read_au_json(au_json_path(tmp_path / "au", "toy", "a"))
    assert len(analysis.summary_description) == 8
    with (p.store.root / "clips.csv").open() as handle:
        table = {row["name"]: row for row in csv.DictReader(handle)}
    assert (table["c"]["status"], table["c"]["faceless"], table["c"]["silent"]) == ("done", "True", "False")
    assert all(float(table["a"][f"{stage}_s"]) >= 0 for stage in ("au_json", "au_text", "decode", "encode", "write"))
    assert report.seconds["total"] == pytest.approx(
        sum(value for stage, value in report.seconds.items() if stage != "total")
    )


def test_what_is_there_is_not_made_again(tmp_path, sources):
    p = plan(tmp_path, list("ab"), sources)
    run(p, describe_clips, encoder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.npy")}
    p.store.path(p.specs[Modality.AUDIO], "b").write_bytes(b"cut")
    report = run(plan(tmp_path, list("abc"), sources), describe_clips, encoder)
    assert report.made == {"au_json": 1, "frame": 1, "face": 1, "audio": 2, "au": 1}
    assert report.complete == 1  # a; of b the sound is not whole, which counts as missing
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.stem for path in before if after[path] != before[path]] == ["b"]


def test_missing_weights_end_the_run_before_its_first_clip(tmp_path, sources):
    def absent(stream):
        raise ValueError("encoder DCT has no weights")

    p = plan(tmp_path, ["a", "b"], sources)
    with pytest.raises(ValueError, match="has no weights"):
        run(p, describe_clips, absent)
    assert log_lines(p) == []


def test_a_kind_of_failure_is_logged_once_and_listed_for_each_clip(tmp_path, sources, caplog):
    report = run(plan(tmp_path, ["x1", "y", "z"], sources, [Modality.FRAME]), describe_clips, encoder)
    assert sorted(failure.name for failure in report.failures) == ["x1", "y", "z"]
    assert sum("frame failed" in text for text in caplog.messages) == 1


def test_bad_clips_are_listed_and_the_others_go_on(tmp_path, sources):
    (sources.video_root / "a.mp4").write_text("this is no video")
    (sources.openface_root / "b.csv").write_text("frame, success\n1, 1\n")
    (sources.audio_root / "c.wav").write_bytes(b"RIFF")
    names = ["a", "b", "c", "../up", "absent"]
    report = run(plan(tmp_path, names, sources), describe_clips, encoder)
    stages = {(name, stage) for name, stage, _ in map(astuple, report.failures)}
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
    assert all(reason and "\n" not in reason for _, _, reason in map(astuple, report.failures))
    p = plan(tmp_path, names, sources)
    store = p.store
    assert len(store.read(p.specs[Modality.AUDIO], "a")) == 8
    text = (store.root / "failures.csv").read_text()
    assert text.startswith("clip,stage,reason,seconds\n")
    assert "../up" in text


def test_a_video_in_an_unknown_codec_keeps_its_sound_and_its_action_units(tmp_path, sources):
    (sources.video_root / "a.mp4").unlink()
    write_video(sources.video_root / "a.avi")
    path = sources.video_root / "a.avi"
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"zzzz"))
    report = run(plan(tmp_path, ["a"], sources), describe_clips, encoder)
    assert report.made == {"au_json": 1, "au_text": 1, "audio": 1, "au": 1}
    assert {failure.stage for failure in report.failures} == {"frame", "face"}
    assert "its video is in a codec that FFmpeg" in report.failures[0].reason


def test_action_units_of_another_clip_are_a_failure_of_the_clip(tmp_path, sources, caplog):
    write_table(sources.openface_root / "a.csv", frames=20)
    write_au_json(AuAnalysis(au_info={"total_frames": 8}), au_json_path(tmp_path / "au", "toy", "b"))
    more = {"streams": [Modality.FRAME, Modality.AU], "sampling": "emotion_peak"}
    report = run(plan(tmp_path, list("abc"), sources, **more), describe_clips, encoder)
    assert report.made == {"au_json": 1, "au": 1, "frame": 1}  # of c, which has no face
    assert {(failure.name, failure.stage) for failure in report.failures} == {
        (name, stage) for name in "ab" for stage in ("au_json", "frame")
    }
    assert "a.mp4 has 12 frames, but its action units were measured on 20" in report.failures[0].reason
    p = plan(tmp_path, ["a"], sources, allow_mismatch=True, **more)
    assert not run(p, describe_clips, encoder).failures
    assert "measured on 20" in caplog.text


def test_action_units_of_two_makers_do_not_mix(tmp_path, sources):
    """Of clips measured by OpenFace, by landmarks and described by another program, the first decides."""
    assert not run(plan(tmp_path, ["c"], sources, [Modality.AU]), describe_clips, encoder).failures  # no face, no maker
    assert not run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clips, encoder).failures
    path = au_json_path(tmp_path / "au", "toy", "a")
    made = {"measured_by": "openface", "sentences_by": "templates", "sentences_of": "8 frames, uniform"}
    p = plan(tmp_path, ["a", "b"], sources, [Modality.AU])
    assert made.items() <= p.store.provenance(p.specs[Modality.AU]).items()
    analysis = read_au_json(path)
    others = {"tool": "mediapipe face mesh"}, {"sentences": "language model x"}, {"described": "4 frames, headtail"}
    for key, other in zip(made, others, strict=True):
        described = replace(analysis, provenance={**analysis.provenance, **other})
        write_au_json(described, au_json_path(tmp_path / "au", "toy", "b"))
        (failure,) = run(p, describe_clips, encoder).failures
        assert (failure.name, failure.stage) == ("b", "au")
        assert failure.reason.startswith(f"{key} is ") and f"but {made[key]!r} in the AU features" in failure.reason
    assert list(au_makers(described, "AU_VALUES")) == ["measured_by"]  # which do without sentences
    allowed = plan(tmp_path, ["b"], sources, [Modality.AU], allow_mismatch=True)
    assert not run(allowed, describe_clips, encoder).failures


def test_no_clip_is_measured_by_another_backend_than_the_others(tmp_path, sources, monkeypatch):
    p = plan(tmp_path, ["a"], sources, stages=("au_json",))  # no features whose sidecar would say it
    run(p, describe_clips, encoder)
    (failure,) = run(plan(tmp_path, ["a", "b"], sources, stages=("au_json",), au_backend="pyfeat"), None, None).failures
    assert (failure.name, failure.stage) == ("b", "au_json")
    assert "would be measured by pyfeat, but others of its data set were by openface" in failure.reason


def test_a_video_without_sound_counts_as_silent(tmp_path, sources):
    only_video = replace(sources, audio_root=None)
    p = plan(tmp_path, ["a"], only_video, [Modality.AUDIO])
    assert not run(p, describe_clips, encoder).failures
    assert p.store.read(p.specs[Modality.AUDIO], "a").shape[0] == 0
    assert state(p, "a").silent


def test_a_json_without_sentences_is_described_and_a_broken_one_is_listed(tmp_path, sources):
    path = au_json_path(tmp_path / "au", "toy", "a")
    p = plan(tmp_path, ["a", "b"], sources, [Modality.AU], stages=("au_json",))
    run(p, describe_clips, encoder)
    assert read_au_json(path).summary_description == {}
    features = plan(tmp_path, ["a", "b"], sources, [Modality.AU], stages=("features",))
    reasons = [reason for _, _, reason in map(astuple, run(features, describe_clips, encoder).failures)]
    assert len(reasons) == 2
    assert "summary_description" in reasons[0]
    path.write_text("[1]")
    report = run(plan(tmp_path, ["a", "b"], sources, [Modality.AU]), describe_clips, encoder)
    assert [(name, stage) for name, stage, _ in map(astuple, report.failures)] == [("a", "au_json")]
    assert report.made == {"au_text": 1, "au": 1}


def test_sentences_follow_the_peak_when_frames_do(tmp_path, sources):
    write_table(sources.openface_root / "a.csv", frames=60)
    write_video(sources.video_root / "a.mp4", frames=60)
    p = plan(tmp_path, ["a"], sources, [Modality.AU], sampling="emotion_peak")
    run(p, describe_clips, encoder)
    analysis = read_au_json(au_json_path(tmp_path / "au", "toy", "a"))
    peak = analysis.au_info["peak_frames"][0]["peak_index"]
    assert str(peak + 1) in analysis.summary_description


def test_face_arrays_are_used_where_they_are_given(tmp_path, sources):
    faces = tmp_path / "faces"
    (faces / "b").mkdir(parents=True)
    np.save(faces / "a.npy", np.random.default_rng(0).integers(0, 255, (20, 112, 112, 3), np.uint8))
    np.save(faces / "b" / "b.npy", np.zeros((3, 112, 112, 3), np.uint8))
    np.save(faces / "c.npy", np.zeros((3, 112, 112)))
    with_faces = replace(sources, face_root=faces)
    p = plan(tmp_path, list("abc"), with_faces, [Modality.FACE])
    report = run(p, describe_clips, encoder)
    assert [name for name, _, _ in map(astuple, report.failures)] == ["c"]
    assert [len(p.store.read(p.specs[Modality.FACE], name)) for name in "ab"] == [8, 8]


def test_files_of_other_tools_keep_their_fields(tmp_path, sources, shared):
    path = au_json_path(tmp_path / "au", "toy", "a")
    analysis = read_au_json(shared / "data/merfactory/default_au_analysis.json")
    write_au_json(analysis, path)
    report = run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clips, encoder)
    assert [(name, stage) for name, stage, _ in map(astuple, report.failures)] == [
        ("a", "au_text")
    ]  # no frames to describe
    assert read_au_json(path).extra["chronological_emotion_peaks"]


def test_a_json_that_measured_a_few_frames_only_is_described_at_those(tmp_path, sources):
    path = au_json_path(tmp_path / "au", "toy", "a")
    write_video(sources.video_root / "a.mp4", frames=90)
    frames = [{"frame": number, "active_aus": {"AU12_r": 2.0}} for number in (1, 35, 69)]
    write_au_json(AuAnalysis(per_frame_au_descriptions=frames, au_info={"total_frames": 90}), path)
    assert not run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clips, encoder).failures
    assert list(read_au_json(path).summary_description) == ["1", "35", "69"]


def test_frames_around_a_peak_are_never_taken_where_the_peak_is_not_known(tmp_path, sources):
    (sources.openface_root / "b.csv").unlink()
    p = plan(tmp_path, ["a", "b"], sources, [Modality.FRAME], sampling="emotion_peak")
    failed = {(name, stage) for name, stage, _ in map(astuple, run(p, describe_clips, encoder).failures)}
    assert failed == {("b", "au_json"), ("b", "frame")}
    assert p.store.missing(p.specs[Modality.FRAME], ["a", "b"]) == ["b"]


def test_remade_sentences_remake_their_features(tmp_path, sources):
    p = plan(tmp_path, ["a"], sources, [Modality.AU])
    run(p, describe_clips, encoder)
    before = p.store.read(p.specs[Modality.AU], "a")
    path = au_json_path(tmp_path / "au", "toy", "a")
    analysis = read_au_json(path)
    analysis.per_frame_au_descriptions = [
        {**f, "active_aus": {"AU26_r": 4.0}} for f in analysis.per_frame_au_descriptions
    ]
    write_au_json(analysis, path)
    again = plan(tmp_path, ["a"], sources, [Modality.AU], stages=("au_text", "features"), overwrite=True)
    run(again, describe_clips, encoder)
    assert not np.array_equal(p.store.read(p.specs[Modality.AU], "a"), before)


def test_one_stream_at_a_time_keeps_what_is_known_of_the_others(tmp_path, sources):
    run(plan(tmp_path, ["c"], sources, [Modality.FACE, Modality.AU]), describe_clips, encoder)
    p = plan(tmp_path, ["c"], sources, [Modality.AUDIO])
    run(p, describe_clips, encoder)
    assert (state(p, "c").faceless, state(p, "c").silent) == (True, False)


def test_an_encoder_that_fails_on_one_clip_keeps_the_others(tmp_path, sources):
    class Fussy:
        dim = 128
        prepare = staticmethod(as_it_is)

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
    p = plan(tmp_path, list("abc"), Settings(dataset="toy", face_root=faces), [Modality.FACE])
    report = run(p, describe_clips, lambda stream: Fussy())
    assert [name for name, _, _ in map(astuple, report.failures)] == ["c"]
    assert report.faceless == ["b"]
    assert p.store.read(p.specs[Modality.FACE], "b").shape == (0, 128)


def test_a_clip_whose_files_failed_is_left_alone_until_they_change(tmp_path, sources):
    video = sources.video_root / "a.mp4"
    whole = video.read_bytes()
    video.write_text("this is no video")
    p = plan(tmp_path, ["a", "b"], sources, [Modality.FRAME])
    assert run(p, describe_clips, encoder).failures
    lines = len(log_lines(p))
    again = run(p, describe_clips, encoder)
    assert (again.left_alone, again.complete) == (1, 1)
    assert [name for name, _, _ in map(astuple, again.failures)] == ["a"]  # it still holds, and the exit code says so
    assert len(log_lines(p)) == lines
    tried = run(plan(tmp_path, ["a", "b"], sources, [Modality.FRAME], retry_failed=True), describe_clips, encoder)
    assert (tried.left_alone, len(log_lines(p))) == (0, lines + 1)
    video.write_bytes(whole)
    mended = run(p, describe_clips, encoder)
    assert (mended.made, mended.failures) == ({"frame": 1}, [])
    assert (p.store.root / "failures.csv").read_text() == "clip,stage,reason,seconds\n"


def test_a_failure_that_came_from_a_setting_is_tried_again_with_another(tmp_path, sources):
    (sources.openface_root / "a.csv").unlink()
    p = plan(tmp_path, ["a"], sources, [Modality.AU])
    assert run(p, describe_clips, encoder).failures
    assert run(p, describe_clips, encoder).left_alone == 1
    write_table(sources.openface_root / "a.csv")
    assert not run(p, describe_clips, encoder).failures


def test_features_are_stored_in_the_numbers_asked_for(tmp_path, sources):
    p = plan(tmp_path, ["a"], sources, dtype="float16")
    assert not run(p, describe_clips, encoder).failures
    arrays = {stream: np.load(p.store.path(spec, "a")) for stream, spec in p.specs.items()}
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert p.store.provenance(p.specs[Modality.FRAME])["dtype"] == "float16"
    with pytest.raises(FeatureError, match="dtype is 'float16'"):  # one folder never holds two kinds
        run(plan(tmp_path, ["b"], sources, [Modality.FRAME]), describe_clips, encoder)


@pytest.mark.parametrize("other", [{"dtype": "float16"}, {"frame_geometry": "squash"}])
def test_other_settings_are_refused_though_nothing_is_missing(tmp_path, sources, other):
    p = plan(tmp_path, ["a"], sources, [Modality.FRAME])
    run(p, describe_clips, encoder)
    changed = plan(tmp_path, ["a"], sources, [Modality.FRAME, Modality.AUDIO], **other)
    with pytest.raises(FeatureError, match=f"{next(iter(other))} is .* but this run would write"):
        run(changed, describe_clips, encoder)
    assert not p.store.path(changed.specs[Modality.AUDIO], "a").parent.exists()
    sidecar = p.store.path(p.specs[Modality.FRAME], "a").with_name("provenance.json")
    older = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({key: value for key, value in older.items() if key not in ("dtype", "pooling")}))
    assert run(p, describe_clips, encoder).complete == 1


def test_a_clip_that_has_everything_but_no_log_is_listed_as_done(tmp_path, sources):
    p = plan(tmp_path, ["c"], sources)
    run(p, describe_clips, encoder)
    (p.store.root / "journal" / "0of1.jsonl").unlink()
    assert run(p, describe_clips, encoder).complete == 1
    assert (state(p, "c").faceless, state(p, "c").failures) == (True, {})


def test_a_full_disk_ends_the_run_and_keeps_what_is_written(tmp_path, sources, monkeypatch):
    p = plan(tmp_path, list("abc"), sources, [Modality.FRAME])
    write, written = FeatureStore.write, []

    def until_full(self, spec, name, array, provenance):
        if written:
            raise OSError(28, os.strerror(28))
        written.append(name)
        return write(self, spec, name, array, provenance)

    monkeypatch.setattr(FeatureStore, "write", until_full)
    report = run(p, describe_clips, encoder)
    assert "No space left" in report.stopped
    monkeypatch.undo()
    again = run(p, describe_clips, encoder)
    assert (again.complete, again.made, again.stopped) == (1, {"frame": 2}, "")


def test_a_missing_peak_is_told_once(tmp_path, sources, caplog):
    p = plan(tmp_path, list("abc"), sources, [Modality.FRAME], sampling="emotion_peak")
    run(p, describe_clips, encoder)
    assert sum("uniform frames are taken" in message for message in caplog.messages) == 1


def test_sentences_of_many_clips_are_asked_for_at_once_and_one_bad_clip_keeps_the_others(tmp_path, sources):
    asked = []

    def describe(clips):
        asked.append(len(clips))
        if any(Path(analysis.source_path).stem == "b" for analysis, _ in clips):
            raise RuntimeError("the model fell over")
        return describe_clips(clips)

    p = plan(tmp_path, list("abc"), sources, [Modality.AU])
    report = run(p, describe, encoder)
    assert asked == [2, 1, 1]  # c has no face; then one by one
    assert [(name, stage) for name, stage, _ in map(astuple, report.failures)] == [("b", "au_text")]
    assert report.made == {"au_json": 3, "au_text": 1, "au": 2}
    assert (
        read_au_json(au_json_path(tmp_path / "au", "toy", "b")).au_info["total_frames"] == 12
    )  # measured all the same
