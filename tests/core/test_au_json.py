"""The AU JSON: reading every known form, writing, sentences, refusals."""

import json
from pathlib import Path

import pytest

from affect.core.au_json import (
    SCHEMA_VERSION,
    AuAnalysis,
    au_json_path,
    find_au_json,
    list_au_json,
    read_au_json,
    require_sentences,
    sentences,
    write_au_json,
)

FORK = {
    "per_frame_au_descriptions": [
        {
            "frame": 1,
            "timestamp": 0.0,
            "au_description": "Upper lip raiser (intensity: 1.06)",
            "active_aus": {"AU10_r": 1.06},
            "is_peak_frame": False,
            "fine_grained_description": "system\nBe brief.\nuser\nAU values: AU10: 1.06\nassistant\nThe lip is raised.",
            "someone_elses_field": [1, 2],
        }
    ],
    "au_info": {"total_frames": 44, "peak_frames": [{"peak_index": 42, "frames_before_peak": 42, "prominence": 3.5}]},
    "summary_description": {"10": "Tenth.", "2": "Second.", "1": "First."},
}


def _write(folder: Path, content: object) -> Path:
    path = folder / "clip_au_analysis.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_file_of_the_fork_loads_with_all_it_says(tmp_path):
    analysis = read_au_json(_write(tmp_path, FORK))
    assert analysis.per_frame_au_descriptions == FORK["per_frame_au_descriptions"]
    assert analysis.au_info == FORK["au_info"]
    assert analysis.source_path == "" and analysis.provenance == {} and not analysis.faceless


def test_every_version_of_merfactory_loads_and_keeps_its_fields(shared, tmp_path):
    paths = sorted((shared / "data/merfactory").glob("*.json"))
    assert len(paths) >= 5
    for path in paths:
        original = json.loads(path.read_text(encoding="utf-8"))
        analysis = read_au_json(path)
        assert analysis.source_path == original.get("source_path", "")
        assert analysis.summary_description == {}
        peak = original.get("overall_peak_frame_info") or original.get("peak_frame_info")
        frames = [(peak["frame_number"], peak["timestamp"], peak["top_aus_intensities"])] if peak else []
        read = [
            (frame["frame"], frame["timestamp"], frame["active_aus"]) for frame in analysis.per_frame_au_descriptions
        ]
        assert read == frames
        write_au_json(analysis, tmp_path / path.name)
        written = json.loads((tmp_path / path.name).read_text(encoding="utf-8"))
        assert {key: written[key] for key in original} == original


def test_files_of_merfactory_are_found_by_their_ending_or_their_folder(tmp_path):
    for name in (
        "set/a/a_merr_data.json",
        "set/a/a_au_analysis.json",
        "set/b/b_merr_data.json",
        "c/video_merr_data.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = {"a": "set/a/a_au_analysis.json", "b": "set/b/b_merr_data.json", "c": "c/video_merr_data.json"}
    assert {name: find_au_json(tmp_path, "set", name) for name in found} == {k: tmp_path / v for k, v in found.items()}
    assert dict(list_au_json(tmp_path)) == {k: tmp_path / v for k, v in found.items()}
    (tmp_path / "c/other_merr_data.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="clip 'c' has no AU JSON"):
        find_au_json(tmp_path, "set", "c")


def test_unknown_fields_at_every_level_are_written_back(tmp_path):
    content = {**FORK, "schema_version": SCHEMA_VERSION, "their_field": {"é": [None, 1.5]}}
    analysis = read_au_json(_write(tmp_path, content))
    out = tmp_path / "new" / "folder" / "out.json"
    write_au_json(analysis, out)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert {key: written[key] for key in content} == content
    assert read_au_json(out) == analysis


def test_analysis_comes_back_as_it_was_written(tmp_path):
    analysis = AuAnalysis(
        "clip.mp4",
        {"tool": "OpenFace"},
        [{"frame": 1, "active_aus": {}}],
        {"total_frames": 1},
        {},
        {"1": "笑"},
        {"x": 1},
    )
    write_au_json(analysis, tmp_path / "a.json")
    assert read_au_json(tmp_path / "a.json") == analysis
    assert "笑" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_byte_order_mark_of_windows_editors_is_read_over(tmp_path):
    (tmp_path / "a.json").write_text('{"source_path": "clip.mp4"}', encoding="utf-8-sig")
    assert read_au_json(tmp_path / "a.json").source_path == "clip.mp4"


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_au_json(AuAnalysis("old.mp4"), path)
    with pytest.raises(ValueError):
        write_au_json(AuAnalysis("new.mp4", extra={"x": float("nan")}), path)
    assert read_au_json(path).source_path == "old.mp4"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_of_other_tools_is_read_as_null(tmp_path):
    analysis = read_au_json(_write(tmp_path, '{"valence": NaN}'))
    assert analysis.extra == {"valence": None}
    write_au_json(analysis, tmp_path / "again.json")


def test_sentences_follow_the_number_of_their_frame(tmp_path):
    assert sentences(read_au_json(_write(tmp_path, FORK))) == ["First.", "Second.", "Tenth."]


def test_fine_grained_descriptions_stand_in_with_their_answers_alone():
    analysis = AuAnalysis(
        fine_grained_descriptions={
            "12": "Plain text.",
            "3": "system\nRules.\nuser\nAU values: x\nassistant\nAn answer.",
        }
    )
    assert sentences(analysis) == ["An answer.", "Plain text."]
    analysis.summary_description = {"5": "Summary first."}
    assert sentences(analysis) == ["Summary first."]


def test_clip_that_was_never_described_is_refused():
    with pytest.raises(ValueError, match=r"clip\.json: expected sentences in summary_description"):
        require_sentences(AuAnalysis(au_info={"total_frames": 3, "frames_without_face": [[1, 2]]}), "clip.json")


def test_faceless_clip_needs_no_sentence():
    analysis = AuAnalysis(au_info={"total_frames": 7, "frames_without_face": [[1, 4], [5, 7]]})
    assert analysis.faceless
    assert require_sentences(analysis, "clip.json") == []


def test_face_in_a_single_frame_is_a_face():
    analysis = AuAnalysis(au_info={"total_frames": 7, "frames_without_face": [[1, 3], [5, 7]]})
    assert not analysis.faceless
    assert [frame for frame in range(1, 8) if analysis.has_face(frame)] == [4]


def test_file_that_says_nothing_of_faces_is_not_faceless():
    assert not AuAnalysis().faceless
    assert not AuAnalysis(au_info={"total_frames": 3}).faceless
    assert AuAnalysis(au_info={"total_frames": 3}).has_face(2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected JSON"),
        ('{"summary_description": {"1": "cut', "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ("null", "expected a JSON object, found null"),
        ({"summary_description": ["a"]}, "summary_description must be an object, found a list"),
        ({"summary_description": "text"}, "summary_description must be an object, found a text"),
        ({"summary_description": {"1": 5}}, "'1': a number"),
        ({"summary_description": {"peak": "text"}}, "'peak'"),
        ({"fine_grained_descriptions": {"1": None}}, "fine_grained_descriptions"),
        ({"per_frame_au_descriptions": {}}, "per_frame_au_descriptions must be a list"),
        ({"per_frame_au_descriptions": [1]}, "per_frame_au_descriptions must be a list of objects"),
        ({"au_info": []}, "au_info must be an object"),
        ({"au_info": {"peak_frames": [3]}}, "peak_frames must be a list of objects"),
        ({"au_info": {"total_frames": "44"}}, "total_frames"),
        ({"au_info": {"frames_without_face": [[1, 2, 3]]}}, "frames_without_face"),
        ({"source_path": 3}, "source_path must be a text"),
        ({"schema_version": SCHEMA_VERSION + 1}, "update the program"),
        ({"schema_version": "new"}, "schema_version is 'new'"),
        ({"au_info": {"total_frames": 200_000_000}}, "at most 100,000 frames"),
        ({"au_info": {"frames_without_face": [[1, 10**20]]}}, "at most 100,000 frames"),
        ('{"au_info": {"total_frames": 1e999}}', "total_frames"),
        ('{"source_path": "\\ud800"}', "surrogates"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_damaged_file_is_refused_in_one_sentence_that_names_it(tmp_path, content, said):
    path = _write(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        read_au_json(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\x93NUMPY\x01\x00\xff\xfe")
    with pytest.raises(ValueError, match="expected JSON"):
        read_au_json(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_au_json(tmp_path / "gone.json")


def test_null_fields_are_empty(tmp_path):
    analysis = read_au_json(_write(tmp_path, {"summary_description": None, "au_info": None}))
    assert analysis.summary_description == {} and analysis.au_info == {}


def test_path_has_the_dataset_folder_once():
    expected = Path("out/MER2023/clip/clip_au_analysis.json")
    assert au_json_path("out", "MER2023", "clip") == expected
    assert au_json_path("out/MER2023", "mer2023", "clip") == expected
    assert au_json_path("out", "", "clip") == Path("out/clip/clip_au_analysis.json")


@pytest.mark.parametrize("name", ["../clip", "", "a/b", ".."])
def test_names_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        au_json_path("out", "MER2023", name)
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        au_json_path("out", name or "..", "clip")


@pytest.mark.parametrize("written_under", ["MER2023", ""])
def test_json_is_found_with_and_without_the_dataset_folder(tmp_path, written_under):
    path = au_json_path(tmp_path, written_under, "clip")
    write_au_json(AuAnalysis(), path)
    assert find_au_json(tmp_path, "MER2023", "clip") == path


def test_json_that_is_nowhere_is_reported_with_both_places(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        find_au_json(tmp_path, "MER2023", "clip")
    message = str(caught.value)
    assert str(au_json_path(tmp_path, "MER2023", "clip")) in message
    assert str(au_json_path(tmp_path, "", "clip")) in message and "clip 'clip'" in message


def test_a_dataset_folder_of_another_case_is_found(tmp_path):
    (tmp_path / "MERCaptionPlus").mkdir()
    path = au_json_path(tmp_path, "mercaptionplus", "a")
    assert path == tmp_path / "MERCaptionPlus" / "a" / "a_au_analysis.json"


@pytest.mark.parametrize(
    "content",
    [
        {"per_frame_au_descriptions": [{"frame": "1"}]},
        {"per_frame_au_descriptions": [{"frame": 1, "active_aus": [1]}]},
        {"per_frame_au_descriptions": [{"frame": 1, "active_aus": {"AU12_r": "high"}}]},
        {"au_info": {"peak_frames": [{"timestamp": 1.0}]}},
    ],
)
def test_parts_that_would_break_their_readers_are_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"x\.json"):
        read_au_json(path)


def test_null_action_units_are_none(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"per_frame_au_descriptions": [{"frame": 1, "active_aus": None}]}))
    assert read_au_json(path).per_frame_au_descriptions[0]["active_aus"] == {}


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (
            {"au_description": "Upper lip raiser (intensity: 1.06), Blink (intensity: 2.00)"},
            {"AU10_r": 1.06, "AU45_r": 2},
        ),
        ({"au_description": "Blink (intensity: 2.00)", "active_aus": {"AU12_r": 1.5}}, {"AU12_r": 1.5}),
        ({"au_description": "a calm face"}, {}),
        ({"au_description": None, "active_aus": None}, {}),
    ],
)
def test_intensities_come_from_the_description_where_they_are_not_given_apart(tmp_path, frame, expected):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"per_frame_au_descriptions": [{"frame": 1, **frame}]}))
    (read,) = read_au_json(path).per_frame_au_descriptions
    assert read["active_aus"] == expected
