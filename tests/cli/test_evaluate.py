"""The scoring tool on golden answers, on real descriptions and on broken input."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from affect.cli import evaluate
from affect.core.au_json import AuAnalysis, au_json_path, write_au_json


@pytest.fixture
def golden(shared, tmp_path):
    """Write truth and answers of a golden case as files; return their paths and the case."""

    def write(name, index, answers="name2pred"):
        case = json.loads((shared / "goldens/metrics" / f"{name}.json").read_text(encoding="utf-8"))["cases"][index]
        paths = [tmp_path / "gt.json", tmp_path / "pred.json"]
        for path, content in zip(paths, (case["name2gt"], case[answers]), strict=True):
            path.write_text(json.dumps(content))
        return ["--gt", str(paths[0]), "--pred", str(paths[1])], case

    return write


@pytest.fixture
def wheels(shared):
    return ["--wheels", str(shared / "goldens/emotion_wheel")]


def scores(capsys, *arguments):
    """Run the tool and return its JSON and what it printed beside it."""
    code = evaluate.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out), err


def refusal(capsys, *arguments):
    """Run the tool and return the sentence with which it refuses."""
    assert evaluate.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_open_vocabulary_scores_are_those_of_the_golden(capsys, golden, wheels, tmp_path):
    files, case = golden("ew_ovmerd_baselines", 0)
    expected = case["expected"]["level1"]
    found, screen = scores(capsys, "ew", *files, *wheels, "--csv", tmp_path / "t.csv")
    assert {key: found[key] for key in ("fscore", "precision", "recall")} == pytest.approx(
        expected["mean_over_5_wheels"], abs=1e-9
    )
    assert [each["n"] for each in found["per_wheel"]] == [each["n"] for each in expected["per_wheel"]]
    assert found["n"] == 170 and found["labels_from"] == "as given"
    assert found["unknown_words"] == 23 and "23 unknown words" in screen
    assert f"csv: {tmp_path / 't.csv'}" in screen
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["wheel"] for row in rows] == ["1", "2", "3", "4", "5", "mean"]
    assert float(rows[-1]["fscore"]) == found["fscore"]


def test_both_levels_are_printed_with_their_mean(capsys, golden, wheels, tmp_path):
    files, case = golden("ew_ovmerd_baselines", 1)
    assert evaluate.main(["ew", *files, *wheels, "--level", "both", "--out", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == ""
    found = json.loads((tmp_path / "out.json").read_text())
    levels = [case["expected"][level]["mean_over_5_wheels"]["fscore"] for level in ("level1", "level2")]
    assert [found[level]["fscore"] for level in ("level1", "level2")] == pytest.approx(levels, abs=1e-9)
    assert found["fscore"] == pytest.approx(sum(levels) / 2, abs=1e-9)


def test_nan_is_written_as_a_string(capsys, golden, wheels):
    files, _ = golden("ew_handmade", 8)
    found, _ = scores(capsys, "ew", *files, *wheels)
    assert (found["fscore"], found["precision"]) == ("NaN", 0)


def test_hit_rates_are_those_of_the_golden_and_are_drawn(capsys, golden, wheels, tmp_path):
    files, case = golden("hitrate", -2)
    found, _ = scores(capsys, "hitrate", *files, *wheels, "--pictures", tmp_path / "pictures")
    assert {key: found[key] for key in ("hitrate", "mscore")} == pytest.approx(case["mean_over_5_wheels"], abs=1e-9)
    pictures = ["clusters.png", "confusion.png", "labels.png", "wheel.png"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == pictures


def test_sentiment_scores_are_those_of_the_golden_and_need_no_wheels(capsys, golden, tmp_path):
    files, case = golden("sentiment", -2, "name2sentiment")
    found, _ = scores(capsys, "sentiment", *files, "--pictures", tmp_path / "pictures")
    assert (found["waf"], found["acc"]) == (pytest.approx(case["waf"], abs=1e-9), pytest.approx(case["acc"], abs=1e-9))
    assert found["unknown_words"] == sum(
        word not in ("positive", "negative", "neutral") for word in case["name2sentiment"].values()
    )
    assert (tmp_path / "pictures" / "confusion.png").is_file()


def test_reasoned_answers_are_labelled_first_and_it_is_said_how(capsys, wheels, tmp_path):
    lines = [
        {"name": "a", "answer": "The lips are parted, so the person feels happy.", "labels": ["joyful"]},
        {"name": "b", "answer": "He is not happy but worried.", "labels": ["anxious"]},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    found, screen = scores(capsys, "ew", "--gt", path, "--pred", path, *wheels)
    assert found["fscore"] == 1 and found["labels_from"] == "wheel vocabulary" and "wheel vocabulary" in screen
    (tmp_path / "valence.json").write_text('{"a": 1.0, "b": -0.5}')
    found, _ = scores(capsys, "sentiment", "--gt", tmp_path / "valence.json", "--pred", path, *wheels)
    assert found["acc"] == 1 and found["labels_from"].startswith("wheel vocabulary")
    assert "expected --wheels" in refusal(capsys, "sentiment", "--gt", tmp_path / "valence.json", "--pred", path)


def test_extra_names_and_empty_answers_are_counted(capsys, wheels, tmp_path):
    (tmp_path / "gt.json").write_text('{"a": "happy", "b": "sad"}')
    (tmp_path / "pred.json").write_text('{"a": "[happy]", "b": "", "c": "[sad]", "d": null}')
    files = ["--gt", tmp_path / "gt.json", "--pred", tmp_path / "pred.json"]
    found, screen = scores(capsys, "hitrate", *files, *wheels)
    assert (found["hitrate"], found["extra_names"], found["empty_answers"]) == (0.5, 2, 2)
    assert "2 answers to unknown names, ignored; 2 empty answers" in screen


@pytest.mark.parametrize("command", ["ew", "hitrate", "sentiment", "fer"])
def test_the_table_that_was_trained_on_is_the_truth_of_one_of_its_splits(capsys, wheels, tmp_path, command):
    truth, pred = tmp_path / "clips.csv", tmp_path / "pred.json"
    truth.write_text("name,openset,valence,split\na,happy,1,test\nb,sad,-1,train\n")
    pred.write_text(json.dumps({"a": "positive" if command == "sentiment" else "happy"}))
    files = [command, "--gt", truth, "--pred", pred, *(wheels if command in ("ew", "hitrate") else [])]
    assert "1 clip (b) has no answer" in (said := refusal(capsys, *files)) and said.endswith("with --split\n")
    found, _ = scores(capsys, *files, "--split", "test")
    assert (found["n"], found["extra_names"]) == (1, 0)
    assert "found none; it has 'test' (1), 'train' (1)" in refusal(capsys, *files, "--split", "val")


@pytest.mark.parametrize(
    ("truth", "answers", "reason"),
    [
        ('{"a": "happy", "b": "sad"}', "{}", "2 clips (a, b) have no answer"),
        ('["happy"]', "{}", "gt.json: expected a JSON object, found a list; give one of names and values"),
        ('{"a": "happy"}', "7", "pred.json: expected a JSON object, found a number; give one of names and values"),
        ('{"a": "happy"', "{}", "gt.json: expected JSON"),
        ('{"a": NaN, "b": "sad"}', '{"a": "", "b": ""}', "1 clip (a) has NaN for a label"),
        ('{"a": "happy"}', '{"a": "["}', "clip 'a': found a lone \"[\""),
        ('{"a": "happy"}', '{"a": 5}', "clip 'a': found 5"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_clear_sentence(capsys, wheels, tmp_path, truth, answers, reason):
    (tmp_path / "gt.json").write_text(truth)
    (tmp_path / "pred.json").write_text(answers)
    files = ["--gt", tmp_path / "gt.json", "--pred", tmp_path / "pred.json"]
    for command in ("ew", "hitrate"):
        assert reason in refusal(capsys, command, *files, *wheels)


def test_bad_valences_wheels_and_paths_end_with_code_2(capsys, tmp_path):
    (tmp_path / "gt.json").write_text('{"a": "happy"}')
    (tmp_path / "zero.json").write_text('{"a": 0.0}')
    (tmp_path / "pred.json").write_text('{"a": "positive"}')
    pred = ["--pred", tmp_path / "pred.json"]
    assert "the valence 'happy'" in refusal(capsys, "sentiment", "--gt", tmp_path / "gt.json", *pred)
    assert "every valence is 0" in refusal(capsys, "sentiment", "--gt", tmp_path / "zero.json", *pred)
    assert "no such file" in refusal(capsys, "sentiment", "--gt", tmp_path / "none.json", *pred)
    wheels = ["--wheels", tmp_path / "none"]
    assert "format.csv: no such file" in refusal(capsys, "ew", "--gt", tmp_path / "gt.json", *pred, *wheels)


def test_real_descriptions_and_templates_are_grounded_on_the_same_intensities(capsys, shared):
    found, screen = scores(capsys, "grounding", "--sentences", shared / "data/text/au_instruction_val.jsonl")
    described, templates = found["descriptions"], found["templates"]
    assert described["texts"] == templates["texts"] == 1608
    assert templates["precision"] == 1 and templates["unfounded"] == {}
    assert described["precision"] < 0.9 and described["faultless_share"] < 0.7
    assert "descriptions" in screen and "templates" in screen


def answer(**changed):
    fields = {"name": "a", "dataset": "toy", "answer": "The lips are parted.", "streams": ["au"], "missing": []}
    return fields | {"action_units": {}} | changed


def test_action_units_come_from_the_au_json_where_answers_have_none(capsys, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer()) + "\n" + json.dumps(answer(name="b", action_units={"AU12": 1.0})))
    frames = [{"frame": 1, "active_aus": {"AU25_r": 2.0}}, {"frame": 2, "au_description": "Blink (intensity: 1.50)"}]
    write_au_json(AuAnalysis(per_frame_au_descriptions=frames), au_json_path(tmp_path / "au", "toy", "a"))
    found, _ = scores(capsys, "grounding", "--pred", path)
    assert (found["mentions"], found["without_units"], found["precision"]) == (1, 1, 0)
    found, _ = scores(capsys, "grounding", "--pred", path, "--au", tmp_path / "au")
    assert (found["precision"], found["recall"], found["without_units"]) == (0.5, 1 / 3, 0)


def test_texts_that_speak_of_an_absent_stream_are_told_by_what_they_speak_of(capsys, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer(answer="The voice is loud.", missing=["audio"])))
    found, _ = scores(capsys, "grounding", "--pred", path)
    assert (found["absent"], found["absent_from"]) == (1, {"voice": 1})


def test_texts_that_cannot_be_grounded_are_refused(capsys, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"input": "nothing measured", "output": "A face."}')
    assert "record 1: expected an input with 'AU descriptions:'" in refusal(capsys, "grounding", "--sentences", path)
    assert "line 1: expected a JSON object with name" in refusal(capsys, "grounding", "--pred", path)
    path.write_text(2 * (json.dumps(answer()) + "\n"))
    assert "found 'a' several times" in refusal(capsys, "grounding", "--pred", path)
    path.write_text("")
    assert "expected lines of JSON, found none" in refusal(capsys, "grounding", "--pred", path)


@pytest.mark.parametrize("what", ["--out", "--csv"])
def test_no_input_is_written_over(capsys, tmp_path, monkeypatch, what):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(answer()))
    monkeypatch.chdir(tmp_path)
    assert "found that of --pred" in refusal(capsys, "grounding", "--pred", path, what, "answers.jsonl")
    assert "found that of --pred" in refusal(
        capsys, "labels", "--pred", "b", path, "--model", "m", "--wheels", "w", what, path
    )
    assert path.read_text() == json.dumps(answer())


def test_a_language_model_labels_files_and_is_compared_with_the_vocabulary(capsys, wheels, tmp_path, tiny_llm):
    path = tmp_path / "checkpoint_000001-description.jsonl"
    path.write_text("\n".join(json.dumps({"name": name, "answer": "He feels happy."}) for name in "ab"))
    found, _ = scores(capsys, "labels", "--pred", path, "--model", tiny_llm, "--sentiment", *wheels)
    (entry,) = found["files"].values()
    assert entry["n"] == 2 and 0 <= entry["agreement"]["overlap"] <= 1
    kept = json.loads((tmp_path / f"{path.stem}-openset.json").read_text())
    assert list(kept["labels"]) == ["a", "b"] and kept["labels_from"] == f"language model {tiny_llm}"
    (tmp_path / "gt.json").write_text('{"a": "happy", "b": "happy"}')
    scored, _ = scores(capsys, "hitrate", "--gt", tmp_path / "gt.json", "--pred", path, *wheels)
    assert scored["labels_from"] == kept["labels_from"]
    (tmp_path / "valence.json").write_text('{"a": 1.0, "b": -0.5}')
    scored, _ = scores(capsys, "sentiment", "--gt", tmp_path / "valence.json", "--pred", path, *wheels)
    assert scored["labels_from"] == kept["labels_from"]


@pytest.fixture
def benchmark(tmp_path):
    """Two systems with two checkpoints each on two test sets."""
    truths = {
        "MER2023": {f"c{i}": ("happy", "sad")[i % 2] for i in range(20)},
        "SIMS": {f"c{i}": i - 9.5 for i in range(20)},
    }
    (tmp_path / "truths.json").write_text(json.dumps(truths))
    rng = np.random.default_rng(0)
    for system, skill in (("good", 0.9), ("poor", 0.3)):
        for folder, truth in (("mer2023", truths["MER2023"]), ("sims", truths["SIMS"])):
            run = tmp_path / f"{system}-{folder}" / "run"
            run.mkdir(parents=True)
            for epoch in (30, 35):
                happy = {
                    name: (value == "happy" if isinstance(value, str) else value > 0) for name, value in truth.items()
                }
                said = {name: "happy" if (rng.random() < skill) == value else "sad" for name, value in happy.items()}
                answers = {name: f"The person feels {word}." for name, word in said.items()}
                np.savez_compressed(run / f"checkpoint_0000{epoch}_loss_0.1.npz", name2reason=answers)
    return tmp_path


def test_unibench_prints_both_rules_and_the_comparison(capsys, wheels, benchmark):
    files = ["--gt", benchmark / "truths.json", "--pred", benchmark / "good", "--against", benchmark / "poor"]
    found, screen = scores(capsys, "unibench", *files, *wheels, "--draws", 200, "--csv", benchmark / "t.csv")
    for rule in ("published", "honest"):
        sets = found[rule]["test_sets"]
        assert [entry["metric"] for entry in sets.values()] == ["hitrate", "waf"]
        assert found[rule]["mean"]["score"] == pytest.approx(np.mean([entry["score"] for entry in sets.values()]))
    assert found["published"]["mean"]["score"] >= found["honest"]["mean"]["score"]
    assert found["honest"]["checkpoint"] == "checkpoint_000035_loss_0.1"
    assert found["comparison"]["mean"]["p"] < 0.05 and found["comparison"]["mean"]["low"] > 0
    assert "Published rule" in screen and "Honest rule" in screen and "20 instead of 411 clips" in screen
    table = pd.read_csv(benchmark / "t.csv", names=range(8))
    assert list(table[1]).count("mean") == 3


def test_the_tables_are_read_once_for_all_checkpoints(capsys, wheels, benchmark, monkeypatch):
    opened, read = [], pd.read_excel
    monkeypatch.setattr(pd, "read_excel", lambda path, **given: opened.append(path.name) or read(path, **given))
    scores(capsys, "unibench", "--gt", benchmark / "truths.json", "--pred", benchmark / "good", *wheels, "--draws", 20)
    assert sorted(opened) == ["synonym.xlsx", *(f"wheel{i}.xlsx" for i in range(1, 6))]


def test_unibench_looks_at_the_asked_epochs_only(capsys, wheels, benchmark):
    files = ["--gt", benchmark / "truths.json", "--pred", benchmark / "good"]
    found, _ = scores(capsys, "unibench", *files, *wheels, "--draws", 20, "--epochs", "30-34", "--validation", "SIMS")
    assert found["honest"]["checkpoint"] == "checkpoint_000030_loss_0.1" and found["honest"]["chosen"] == "best on SIMS"
    assert list(found["honest"]["test_sets"]) == ["MER2023"]
    assert "expected the validation set 'x'" in refusal(capsys, "unibench", *files, *wheels, "--validation", "x")
    with pytest.raises(SystemExit) as stop:
        evaluate.parse_arguments(["unibench", "--gt", "x", "--pred", "x", "--wheels", "x", "--epochs", "last"])
    assert stop.value.code == 2


def test_expression_labels_are_scored_and_drawn(tmp_path, capsys):
    truth, found = {"1": "happy", "2": "sad", "3": "sad"}, {"1": "happy", "2": "happy", "3": "sad", "4": "sad"}
    paths = [tmp_path / "gt.json", tmp_path / "pred.json"]
    for path, content in zip(paths, (truth, found), strict=True):
        path.write_text(json.dumps(content))
    arguments = ["fer", "--gt", paths[0], "--pred", paths[1], "--pictures", tmp_path / "pictures"]
    result, _ = scores(capsys, *arguments)
    assert result["acc"] == pytest.approx(2 / 3)
    assert result["uar"] == pytest.approx(0.75)
    assert result["extra_names"] == 1
    assert [row["label"] for row in result["per_label"]] == ["happy", "sad"]
    assert (tmp_path / "pictures" / "confusion.png").is_file()
    paths[1].write_text(json.dumps({"1": "happy", "2": 3}))
    for content, message in (
        ({"1": "happy"}, "2 clips (2, 3) have no answer"),
        ({**truth, "2": 3}, "2: expected one label"),
    ):
        paths[1].write_text(json.dumps(content))
        assert evaluate.main(list(map(str, arguments))) == 2
        assert message in capsys.readouterr().err
