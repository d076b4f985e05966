"""Instruction data for the AU agent: what it asks, what must not be in it, and how it is split."""

import csv
import json
import shutil

import pytest

import prepare_au_agent_data as prepare
from affect.core.au_json import AuAnalysis, au_json_path, write_au_json
from affect.core.conversation import SYSTEM
from affect.core.facs import ACTION_UNITS
from extractors.au.agent import AuAgent
from extractors.au.templates import describe_clips, describe_frame, frame_prompt
from prepare_au_agent_data import choose_val, leaks

SETS = ("au_agent_train", "au_agent_val")


def _write_clip(root, name, sentences=None, dataset="", level=1.0):
    """Write an AU JSON of three frames; by templates, or with the given sentences."""
    frames = [{"AU04_r": level}, {"AU12_r": level, "AU25_r": 1.0}, {"AU01_r": level + 0.5}]
    analysis = AuAnalysis(
        per_frame_au_descriptions=[{"frame": i, "active_aus": aus} for i, aus in enumerate(frames, 1)],
        au_info={"total_frames": 3},
    )
    analysis = describe_clips([(analysis, [0, 1, 2])])[0]
    if sentences is not None:
        analysis.summary_description = {str(i): text for i, text in enumerate(sentences, 1)}
    write_au_json(analysis, au_json_path(root, dataset, name))
    return frames


def _records(folder):
    """Return the records of train and val."""
    return [[json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in SETS]


def _dropped(folder):
    with (folder / "dropped.csv").open(newline="") as handle:
        return [(row["clip"], row["frame"], row["reason"], row["found"]) for row in csv.DictReader(handle)]


def _run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def _old_record(emotions, output="The brows are lowered.", described="Brow lowerer (intensity: 1.32)"):
    return {
        "instruction": "Generate a description.",
        "input": f"Emotion: {emotions}\nPrompt: Given the emotion label …:\nAU values: x\nAU descriptions: {described}",
        "output": output,
    }


def _write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# -- what is asked ---------------------------------------------------------------------------------


def _as_llamafactory_asks(record):
    """The user turn of an alpaca record: what is not empty of instruction and input, joined by a line break."""
    return "\n".join(filter(None, [record["instruction"], record["input"]]))


def test_records_ask_what_the_agent_asks(tmp_path, tiny_llm):
    frames = _write_clip(tmp_path / "au", "a", dataset="Set")
    assert _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out") == 0
    train, val = _records(tmp_path / "out")
    assert [list(record) for record in train] == [["instruction", "input", "output", "system"]] * 3 and not val
    assert [_as_llamafactory_asks(record) for record in train] == list(map(frame_prompt, frames))
    assert [record["output"] for record in train] == list(map(describe_frame, frames))
    # the whole of what a model sees in use, template included
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm, folder)
    agent, seen = AuAgent(folder, max_new_tokens=1), []
    agent.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    agent._generate = lambda prompts: seen.extend(prompts) or ["-"] * len(prompts)
    agent.describe(frames[:1])
    turns = (("system", train[0]["system"]), ("user", _as_llamafactory_asks(train[0])))
    trained = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"
    assert agent.tokenizer.decode(seen[0]) == trained


def test_data_sets_are_named_for_llamafactory_beside_others(tmp_path):
    _write_clip(tmp_path / "au", "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset_info.json").write_text('{"alpaca_en": {"hf_hub_url": "x"}}')
    _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out")
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert info.pop("alpaca_en") == {"hf_hub_url": "x"} and tuple(info) == SETS
    record = _records(tmp_path / "out")[0][0]
    for name, entry in info.items():
        assert (tmp_path / "out" / entry["file_name"]).is_file() and entry["file_name"] == f"{name}.jsonl"
        assert set(entry["columns"]) == {"prompt", "query", "response", "system"}
        assert list(entry["columns"].values()) == list(record)


def test_broken_dataset_info_is_not_overwritten(tmp_path):
    _write_clip(tmp_path / "au", "a")
    (tmp_path / "out").mkdir()
    for text in ("[1]", "{"):
        (tmp_path / "out/dataset_info.json").write_text(text)
        with pytest.raises(ValueError, match=r"dataset_info\.json: expected a JSON object"):
            _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset_info.json"]
        assert (tmp_path / "out/dataset_info.json").read_text() == text


def test_units_given_in_words_alone_and_answers_in_exchanges_are_read(tmp_path):
    analysis = AuAnalysis(
        per_frame_au_descriptions=[{"frame": 7, "au_description": "Lip corner puller (smile) (intensity: 1.14)"}],
        fine_grained_descriptions={"7": "user\nWhat?\nassistant\nThe lip corners go up."},
    )
    write_au_json(analysis, au_json_path(tmp_path / "au", "Set", "a"))
    _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out")
    ((record,), _) = _records(tmp_path / "out")
    assert _as_llamafactory_asks(record) == frame_prompt({"AU12": 1.14})
    assert record["output"] == "The lip corners go up."


# -- what leaks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The brows are lowered, suggesting anger.", ["anger"]),
        ("An angrily drawn brow and a sadly drooping mouth.", ["angrily", "sadly"]),
        ("The corners rise in happiness; the cheeks joyfully lift.", ["happiness", "joyfully"]),
        ("Lids tighten without any sign of sadness.", ["sadness"]),
        ("The face conveys a heavy emotional state.", ["emotional"]),
        ("The Lips part in SURPRISE.", ["surprise"]),
        ("The lips part in a light-hearted way.", ["light-hearted"]),
        ("The lids tighten, suggesting depression.", ["depression"]),
        ("The mouth opens, as the person is depressed.", ["depressed"]),
        ("Marked lip corner depression by the depressor anguli oris.", []),
        ("The depressor anguli oris is depressing the lip corners, and the jaw is depressed.", []),
        ("Tense muscles around the mouth, a relaxed brow and a neutral ocular region.", []),
        ("The cheeks are pushed up, the lips pressed, the eyes open, the nose wrinkled; a slight smile.", []),
        ("Focused engagement of the lower facial muscles, with intense and controlled lid tension.", []),
    ],
)
def test_feelings_leak_and_anatomy_does_not(text, found):
    assert leaks(text) == found


@pytest.mark.parametrize(
    ("text", "labels", "found"),
    [
        ("The mouth keeps a composed line.", ("calm", "composed"), ["composed"]),
        ("The mouth keeps a composed line.", ("worried",), []),
        ("The lips part, with composure.", ("composed",), []),
        ("Lips pressed seriously.", ("Seriousness",), ["seriously"]),
        ("Lips parted, a state under pressure.", ("under pressure",), ["under pressure"]),
        ("Lips under some pressure.", ("under pressure",), []),
        ("The lids are tense.", ("tense",), []),
        ("The lids tighten, a tense state.", ("tense",), ["tense"]),
        ("The lids tighten, a tense state.", (), []),
        ("The facial expression returns to neutral.", ("neutral",), ["neutral"]),
        ("The lips return to neutral.", ("neutral",), []),
        ("A relaxed facial appearance.", ("relaxed",), ["relaxed"]),
        ("The cheek is raised and the lips are opened.", ("cheeky", "open"), []),
        ("The brows draw down, reflecting muscle activity.", ("reflection",), []),
        ("The brows draw down.", ("", "…"), []),
    ],
)
def test_labels_of_the_clip_leak_unless_said_of_the_face(text, labels, found):
    assert leaks(text, labels) == found


def test_nothing_that_is_asked_leaks():
    assert leaks(frame_prompt(dict.fromkeys(ACTION_UNITS, 2.0))) == []
    assert leaks("Emotion: [happy, worried]") == ["emotion", "happy", "worried"]


def test_templates_do_not_leak():
    for unit in ACTION_UNITS:
        for level in range(1, 6):
            assert leaks(describe_frame({unit: level, "AU15": 1.0, "AU25": 2.0}), ("tense", "depressed", "open")) == []


def test_leaks_are_left_out_and_listed(tmp_path, capsys):
    good = "The brows are lowered."
    _write_clip(tmp_path / "au", "a", [good, "The lips part in anger.", "The brows rise with resolve."])
    _write_clip(tmp_path / "au", "b", ["The lids close with resolve."] * 3)
    (tmp_path / "t.csv").write_text("name,mine,other\na,\"['resolve', 'calm']\",x\nb,x,y\ngone,z,z\n")
    where = ("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out")
    labels = ("--csv_path", tmp_path / "t.csv", "--label", "mine", "other", "--val_share", "0")
    assert _run(*where, *labels) == 0
    assert [record["output"] for record in _records(tmp_path / "out")[0]] == [good] + [
        "The lids close with resolve."
    ] * 3
    assert _dropped(tmp_path / "out") == [
        ("gone", "", "no AU JSON", ""),
        ("a", "2", "leak", "anger"),
        ("a", "3", "leak", "resolve"),
    ]
    out = capsys.readouterr().out
    assert "left out: leak" in out and "anger (1), resolve (1)" in out
    assert _run(*where, *labels, "--strict") == 1
    shutil.rmtree(tmp_path / "au/a")
    assert _run(*where, *labels, "--strict") == 0  # a clip that is not there is no leak


def test_label_column_that_is_not_there_is_named(tmp_path):
    _write_clip(tmp_path / "au", "a")
    (tmp_path / "t.csv").write_text("name,emotion\na,happy\n")
    with pytest.raises(
        ValueError, match="expected a column 'openset', found name, emotion; see --csv_column and --label"
    ):
        _run("--mer-factory-output", tmp_path / "au", "--csv_path", tmp_path / "t.csv", "--save_root", tmp_path / "o")


def test_clips_that_the_table_does_not_name_are_not_taken(tmp_path):
    for name, level in (("a", 1.0), ("b", 2.0)):
        _write_clip(tmp_path / "au", name, level=level)
    (tmp_path / "t.csv").write_text("name,openset\nb,happy\n")
    _run("--mer-factory-output", tmp_path / "au", "--csv_path", tmp_path / "t.csv", "--save_root", tmp_path / "out")
    assert ["AU04: 2.00" in record["input"] for record in _records(tmp_path / "out")[0]] == [True, False, False]


# -- what cannot be used ---------------------------------------------------------------------------


def test_one_bad_file_stops_nothing(tmp_path):
    _write_clip(tmp_path / "au", "good")
    _write_clip(tmp_path / "au", "cut", ["The brows are", "", "The lips part."])
    _write_clip(tmp_path / "au", "silent", [])
    for name, text in (("text", "no JSON"), ("list", "[]")):
        path = au_json_path(tmp_path / "au", "", name)
        path.parent.mkdir()
        path.write_text(text)
    strange = AuAnalysis(
        per_frame_au_descriptions=[{"frame": 1, "active_aus": {"AU99_r": 1.0}}],
        summary_description={"1": "It moves.", "5": "It moves."},
    )
    write_au_json(strange, au_json_path(tmp_path / "au", "", "strange"))
    where = ("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out", "--val_share", 0)
    assert _run(*where) == 0 and _run(*where, "--strict") == 1
    assert len(_records(tmp_path / "out")[0]) == 4
    dropped = _dropped(tmp_path / "out")
    assert sorted((clip, frame, reason) for clip, frame, reason, _ in dropped) == [
        ("cut", "1", "cut off"),
        ("cut", "2", "cut off"),
        ("list", "", "unreadable"),
        ("silent", "", "no sentences"),
        ("strange", "1", "unreadable"),
        ("strange", "5", "unreadable"),
        ("text", "", "unreadable"),
    ]
    assert any("AU99" in found for *_, found in dropped)


def test_equal_records_are_written_once(tmp_path):
    for i in range(4):
        _write_clip(tmp_path / "au", f"c{i}")
    _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out", "--val_share", "0.5")
    train, val = _records(tmp_path / "out")
    assert len(train) + len(val) == 3  # all four clips are the same


def test_nothing_to_work_on_is_refused(tmp_path):
    (tmp_path / "au").mkdir()
    with pytest.raises(ValueError, match="expected records of clips, found none"):
        _run("--mer-factory-output", tmp_path / "au", "--save_root", tmp_path / "out")
    for arguments in ([], ["--jsonl", "x", "--csv_path", "y"], ["--jsonl", "x", "--val_share", "1"]):
        with pytest.raises(SystemExit):
            _run(*arguments, "--save_root", tmp_path / "out")


# -- split -----------------------------------------------------------------------------------------


def test_no_clip_is_on_both_sides(tmp_path):
    for i in range(20):
        _write_clip(tmp_path / "au", f"c{i}", level=1 + i / 10, dataset="Set" if i % 2 else "")
    common = ("--mer-factory-output", tmp_path / "au", "--val_share", "0.25")
    _run(*common, "--save_root", tmp_path / "out")
    train, val = _records(tmp_path / "out")
    brows = [{r["input"].split("AU04: ")[1][:4] for r in side if "AU04: " in r["input"]} for side in (train, val)]
    assert (len(train), len(val)) == (45, 15) and list(map(len, brows)) == [15, 5] and not brows[0] & brows[1]
    _run(*common, "--save_root", tmp_path / "again")
    assert _records(tmp_path / "again") == [train, val]
    _run(*common, "--save_root", tmp_path / "other", "--seed", "1")
    assert _records(tmp_path / "other")[1] != val


def test_split_depends_on_names_and_seed_only():
    clips = [f"clip {i}" for i in range(100)]
    val = choose_val(clips, 0.1, 0)
    assert len(val) == 10 and val == choose_val(clips[::-1], 0.1, 0) and val != choose_val(clips, 0.1, 1)
    assert len(choose_val(clips[:2], 0.1, 0)) == 1  # small sets have a side for each, too
    assert not choose_val(clips[:1], 0.9, 0) and not choose_val(clips, 0, 0)


# -- older records ---------------------------------------------------------------------------------


def test_older_records_lose_their_emotions(tmp_path):
    path = _write_jsonl(
        tmp_path / "old.jsonl",
        _old_record("[resolve, calm]"),
        _old_record("[resolve, calm]", "Lids tighten with resolve."),
        _old_record("neutral", described="none"),
    )
    assert _run("--jsonl", path, "--save_root", tmp_path / "out", "--val_share", "0") == 0
    first, second = _records(tmp_path / "out")[0]
    assert _as_llamafactory_asks(first) == frame_prompt({"AU04": 1.32}) and first["system"] == SYSTEM
    assert _as_llamafactory_asks(second) == frame_prompt({})
    assert [entry[1:] for entry in _dropped(tmp_path / "out")] == [("old.jsonl line 2", "leak", "resolve")]


def test_older_records_of_the_same_emotions_stay_together(tmp_path):
    feelings = [f"[feeling{i}, other]" for i in range(10)]
    records = [
        _old_record(feeling, described=f"Brow lowerer (intensity: {i}.{j}0)")
        for j in range(4)
        for i, feeling in enumerate(feelings)
    ]
    path = _write_jsonl(tmp_path / "old.jsonl", *records)
    _run("--jsonl", path, "--save_root", tmp_path / "out", "--val_share", "0.3")
    groups = [{r["input"].split("AU04: ")[1][0] for r in side} for side in _records(tmp_path / "out")]
    assert list(map(len, groups)) == [7, 3] and not groups[0] & groups[1]


def test_converted_records_can_be_converted_again(tmp_path):
    path = _write_jsonl(tmp_path / "old.jsonl", _old_record("[calm]"), _old_record("[sad]", described="none"))
    _run("--jsonl", path, "--save_root", tmp_path / "out", "--val_share", "0")
    _run("--jsonl", tmp_path / "out/au_agent_train.jsonl", "--save_root", tmp_path / "again", "--val_share", "0")
    assert _records(tmp_path / "again") == _records(tmp_path / "out")


def test_broken_lines_are_listed(tmp_path):
    path = _write_jsonl(
        tmp_path / "old.jsonl", _old_record("[calm]"), {"input": "x"}, [1], _old_record("a", described="?")
    )
    path.write_text(path.read_text() + "{cut\n\n")
    assert _run("--jsonl", path, "--save_root", tmp_path / "out", "--strict") == 1
    assert [entry[1:3] for entry in _dropped(tmp_path / "out")] == [
        (f"old.jsonl line {i}", "unreadable") for i in (2, 3, 4, 5)
    ]


def test_real_records_are_converted(shared, tmp_path):
    real = shared / "data/text/au_instruction_val.jsonl"
    assert _run("--jsonl", real, "--save_root", tmp_path) == 0
    train, val = _records(tmp_path)
    records = train + val
    reasons = [reason for _, _, reason, _ in _dropped(tmp_path)]
    assert len(records) + len(reasons) == 1608
    assert reasons.count("cut off") == 4 and reasons.count("leak") == 3
    texts = [json.dumps(record) for record in records]
    assert not [text for text in texts if "Emotion:" in text or "(smile)" in text.split('"output"')[0]]
    assert sum("depression" in record["output"] for record in records) > 200  # of lip corners and jaws
    assert not [record for record in records if leaks(record["input"])]
