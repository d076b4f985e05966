"""What a later run of the driver does with what an earlier one left: stages apart, mended clips, stops."""

import fcntl
import os
from dataclasses import astuple, replace

import pytest

from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.schema import Modality
from affect.features.store import FeatureStore
from extractors.au.templates import describe_clips
from extractors.run import driver
from extractors.run.planning import shard
from extractors.run.session import STAGES
from toy_driver import encoder, log_lines, plan, run


def stored(p):
    return {path.relative_to(p.store.root): path.read_bytes() for path in p.store.root.glob("*/*.npy")}


def test_stages_one_by_one_in_any_order_end_in_the_same_store(tmp_path, sources):
    at_once = plan(tmp_path, list("abc"), sources)
    run(at_once, describe_clips, encoder)
    other = replace(sources, au_root=tmp_path / "other au")
    for stages in (("features",), ("au_json",), ("au_text",), ("features",)):
        p = plan(tmp_path / "other", list("abc"), other, stages=stages)
        report = run(p, describe_clips, encoder)
    assert (report.failures, report.left_alone) == ([], 0)
    assert stored(p) == stored(at_once)


def test_what_failed_for_want_of_an_earlier_stage_is_made_with_it(tmp_path, sources):
    assert run(plan(tmp_path, ["a"], sources, [Modality.AU], stages=("features",)), describe_clips, encoder).failures
    assert not run(plan(tmp_path, ["a"], sources, [Modality.AU]), describe_clips, encoder).failures


def test_a_broken_json_is_tried_again_when_it_is_another_or_gone(tmp_path, sources):
    path = au_json_path(tmp_path / "au", "toy", "a")
    path.parent.mkdir(parents=True)
    path.write_text("[1]")
    p = plan(tmp_path, ["a"], sources, [Modality.AU])
    assert run(p, describe_clips, encoder).failures
    assert run(p, describe_clips, encoder).left_alone == 1
    path.write_text("[1, 2]")
    assert run(p, describe_clips, encoder).left_alone == 0
    path.unlink()
    assert not run(p, describe_clips, encoder).failures


def test_a_peak_that_becomes_known_gives_the_clip_its_frames(tmp_path, sources):
    (sources.openface_root / "b.csv").unlink()
    p = plan(tmp_path, ["b"], sources, [Modality.FRAME], sampling="emotion_peak")
    assert run(p, describe_clips, encoder).failures
    assert run(p, describe_clips, encoder).left_alone == 1
    info = {"total_frames": 12, "peak_frames": [{"peak_index": 5}]}
    write_au_json(AuAnalysis(au_info=info), au_json_path(tmp_path / "au", "toy", "b"))
    assert run(p, describe_clips, encoder).made == {"frame": 1}


def test_a_json_that_vanished_is_made_anew_though_the_video_is_broken(tmp_path, sources):
    (sources.video_root / "a.mp4").write_text("this is no video")
    p = plan(tmp_path, ["a"], sources)
    run(p, describe_clips, encoder)
    assert run(p, describe_clips, encoder).left_alone == 1
    path = au_json_path(tmp_path / "au", "toy", "a")
    content = path.read_bytes()
    path.unlink()
    assert run(p, describe_clips, encoder).made == {"au_json": 1, "au_text": 1, "au": 1}
    assert path.read_bytes() == content


def test_what_a_stage_finds_whole_adds_nothing_to_the_log(tmp_path, sources):
    for stages in (STAGES[:1], STAGES[:2]):
        p = plan(tmp_path, list("ab"), sources, stages=stages)
        first = run(p, describe_clips, encoder)
        lines = log_lines(p)
        again = run(p, describe_clips, encoder)
        assert (first.made[stages[-1]], again.made, again.complete) == (2, {}, 2)
        assert log_lines(p) == lines


def test_a_clip_whose_name_was_mended_has_no_failure_left(tmp_path, sources):
    twin = sources.video_root / "a.avi"
    twin.touch()
    p = plan(tmp_path, ["a"], sources, [Modality.AUDIO])
    assert run(p, describe_clips, encoder).failures
    twin.unlink()
    assert not run(p, describe_clips, encoder).failures


@pytest.mark.parametrize("name", ["", "x" * 300, "\udcc4\udce3"], ids=["empty", "too long", "no UTF-8"])
def test_a_name_that_no_file_can_have_costs_only_itself_and_the_log_stays_readable(tmp_path, sources, name):
    p = plan(tmp_path, [*shard([name], 0, 1), "a"], sources, [Modality.AUDIO])
    for made in ({"audio": 1}, {}):
        report = run(p, describe_clips, encoder)
        assert (report.made, [stage for _, stage, _ in map(astuple, report.failures)]) == (made, ["name"])
    assert (p.store.root / "failures.csv").read_text(encoding="utf-8").count(",name,") == 1


def test_a_disk_without_room_for_a_sidecar_ends_the_run_with_its_tables(tmp_path, sources, monkeypatch):
    def full(self, spec, provenance):
        raise OSError(28, os.strerror(28))

    (sources.video_root / "a.mp4").write_text("this is no video")
    monkeypatch.setattr(FeatureStore, "declare", full)
    report = run(plan(tmp_path, list("ab"), sources, [Modality.FRAME]), describe_clips, encoder)
    assert "No space left" in report.stopped
    assert (tmp_path / "features" / "toy" / "clips.csv").is_file()


def test_an_interrupted_run_says_so_and_goes_on_later(tmp_path, sources):
    def interrupted(clips):
        raise KeyboardInterrupt

    p = plan(tmp_path, list("ab"), sources, [Modality.AU])
    assert "interrupted" in run(p, interrupted, encoder).stopped
    again = run(p, describe_clips, encoder)
    assert (again.made["au"], again.stopped) == (2, "")


def test_tables_are_made_by_one_process_at_a_time(tmp_path, sources, monkeypatch):
    write_tables, held = driver.write_tables, []

    def watched(root, states):
        with (root / "journal" / "tables.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(root.name)
        write_tables(root, states)

    monkeypatch.setattr(driver, "write_tables", watched)
    run(plan(tmp_path, ["a"], sources, [Modality.AUDIO]), describe_clips, encoder)
    assert held == ["toy"]
