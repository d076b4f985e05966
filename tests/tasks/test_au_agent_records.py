"""Instruction records: reading, what is asked, where the loss is."""

import inspect
import json
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.core.conversation import COLUMNS, SYSTEM, question_ids
from affect.tasks.au_agent_config import AgentConfig
from affect.tasks.au_agent_records import (
    NO_LOSS,
    Record,
    Source,
    answer_loss,
    collate,
    digest,
    find_source,
    make_examples,
    read_records,
    read_sets,
    unigram_loss,
)
from extractors.au.templates import INSTRUCTION, frame_input, frame_prompt

FRAME = {"AU12_r": 2.0}
GOOD = {"instruction": INSTRUCTION, "input": frame_input(FRAME), "output": "The lip corners rise."}
STOP = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return AutoTokenizer.from_pretrained(tiny_llm)


def _write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def _config(folder, **settings):
    return AgentConfig(**{"model_name_or_path": "m", "output_dir": "o", "dataset_dir": str(folder)} | settings)


def _numbered(count):
    return [GOOD | {"output": f"Answer {i}."} for i in range(count)]


# -- reading ---------------------------------------------------------------------------------------


def test_record_asks_what_the_agent_asks(tmp_path):
    records = read_records(Source(_write(tmp_path / "r.jsonl", GOOD, GOOD | {"system": "Own."}), COLUMNS), SYSTEM)
    assert records == [
        Record(SYSTEM, frame_prompt(FRAME), "The lip corners rise."),
        Record("Own.", frame_prompt(FRAME), "The lip corners rise."),
    ]


def test_wrong_lines_are_numbered(tmp_path):
    lines = ['{"instruction": "a", ', GOOD, {"instruction": "a", "input": ""}, "", GOOD | {"output": " "}, [1]]
    with pytest.raises(ValueError) as caught:
        read_records(Source(_write(tmp_path / "r.jsonl", *lines), COLUMNS), SYSTEM)
    faults = str(caught.value)
    assert faults.startswith(f"{tmp_path / 'r.jsonl'}: line 1: broken JSON (") and "\n" not in faults
    for expected in ("line 3: output is missing", "line 5: output is empty", "line 6: expected an object, found list"):
        assert expected in faults


def test_many_wrong_lines_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"line 5: .*; and 7 more; correct or remove them"):
        read_records(Source(_write(tmp_path / "r.jsonl", *["{}"] * 12), COLUMNS), SYSTEM)


def test_empty_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"r\.jsonl: expected records with instruction, .* found none"):
        read_records(Source(_write(tmp_path / "r.jsonl"), COLUMNS), SYSTEM)
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file; expected instruction records"):
        read_records(Source(tmp_path / "gone.jsonl", COLUMNS), SYSTEM)


def test_one_json_list_is_read_like_lines(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([GOOD, GOOD], indent=1))
    lines = _write(tmp_path / "r.jsonl", GOOD, GOOD)
    assert read_records(Source(tmp_path / "r.json", COLUMNS), "") == read_records(Source(lines, COLUMNS), "")


def test_data_set_is_a_registered_name_or_a_path(tmp_path):
    path = _write(tmp_path / "r.jsonl", {"ask": "Q", "say": "A."})
    info = {"mine": {"file_name": "r.jsonl", "columns": {"prompt": "ask", "response": "say"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    source = find_source(str(tmp_path), "mine")
    assert source.path == path and read_records(source, "S") == [Record("S", "Q", "A.")]
    assert find_source("elsewhere", str(path)) == Source(path, COLUMNS)


def test_data_set_that_is_not_registered_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset_info\.json: no such file; expected a JSON object .*prepare_au_agent_data"
    ):
        find_source(str(tmp_path), "mine")
    (tmp_path / "dataset_info.json").write_text('{"one": {"hf_hub_url": "a/b"}, "two": {}}')
    with pytest.raises(ValueError, match="data set 'mine' is not there, found one, two; correct dataset"):
        find_source(str(tmp_path), "mine")
    with pytest.raises(ValueError, match="data set 'one': expected file_name"):
        find_source(str(tmp_path), "one")


def test_neighbours_stay_on_one_side(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = str(_write(tmp_path / "r.jsonl", *_numbered(20)))
    for settings, count in (({"val_size": 0.2}, 4), ({"val_size": 3}, 3), ({"eval_strategy": "steps"}, 2), ({}, 0)):
        train, held_out = read_sets(_config(tmp_path, dataset=path, **settings))
        assert [record.answer for record in train + held_out] == [f"Answer {i}." for i in range(20)]
        assert len(held_out) == count
    assert caplog.text.count("the last 10 % of the records are held back") == 1
    with pytest.raises(ValueError, match="20 records held back of 20 leave none to train on"):
        read_sets(_config(tmp_path, dataset=path, val_size=20))


def test_first_records_of_each_set_are_taken(tmp_path):
    paths = [str(_write(tmp_path / f"{name}.jsonl", *_numbered(5))) for name in "ab"]
    train, held_out = read_sets(_config(tmp_path, dataset=",".join(paths), eval_dataset=paths[0], max_samples=2))
    assert [record.answer for record in train] == ["Answer 0.", "Answer 1."] * 2 and len(held_out) == 2


def test_emotions_in_real_records_are_warned_of(shared, tmp_path, caplog):
    path = shared / "data/text/au_instruction_val.jsonl"
    train, _ = read_sets(_config(tmp_path, dataset=str(path)))
    assert len(train) == 1608
    assert "1608 of 1608 records tell the emotion ('Emotion: ...'), which" in caplog.text
    assert f"python tools/prepare_au_agent_data.py --jsonl {path} " in caplog.text


def test_records_without_emotions_are_not_warned_of(tmp_path, caplog):
    read_sets(_config(tmp_path, dataset=str(_write(tmp_path / "r.jsonl", GOOD))))
    assert not caplog.messages


# -- examples --------------------------------------------------------------------------------------


def test_loss_is_on_the_answer_and_its_end_alone(tokenizer):
    records = [Record(SYSTEM, frame_prompt(FRAME), "The lip corners rise."), Record("", "Q", "A.")]
    examples = make_examples(records, tokenizer, STOP, 4096)
    asked = question_ids(tokenizer, [(SYSTEM, frame_prompt(FRAME))])[0]
    assert examples[0]["input_ids"][: examples[0]["answer_start"]] == asked
    labels = collate(examples, {"position_ids"}).labels
    for example, row in zip(examples, labels.tolist(), strict=True):
        learned = [token for token in row if token != NO_LOSS]
        assert learned == example["input_ids"][example["answer_start"] :] and learned[-1] == STOP
    assert tokenizer.decode([token for token in labels[0].tolist() if token != NO_LOSS][:-1]) == "The lip corners rise."


def test_cut_answers_do_not_end_and_questions_stay_whole(tokenizer, caplog):
    records = [Record("", "Q", "One two three four five."), Record("", "Q" * 200, "A."), Record("", "Q", "A.")]
    whole = make_examples(records, tokenizer, STOP, 4096)
    cutoff = len(whole[0]["input_ids"]) - 3
    cut = make_examples(records, tokenizer, STOP, cutoff)
    assert cut == [{**whole[0], "input_ids": whole[0]["input_ids"][:-3]}, whole[2]]
    assert "of 3 records 1 answers lose their end and 1 records are left out" in caplog.text
    with pytest.raises(ValueError, match="cutoff_len 3 leaves no room for any answer; raise it"):
        make_examples(records, tokenizer, STOP, 3)


def test_padding_and_missing_logits_change_no_loss(tiny_llm, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_llm).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    records = [Record("S", "Q" * 30, "The brows are drawn down."), Record("", "Q", "At rest.")]
    examples = make_examples(records, tokenizer, STOP, 4096)
    accepted = frozenset(inspect.signature(model.forward).parameters)
    tail, full = (collate(examples, names) for names in (accepted, accepted - {"logits_to_keep"}))
    assert tail.labels.shape[1] < full.labels.shape[1] == full.inputs["input_ids"].shape[1]
    alone, tokens = 0.0, 0
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        logits = model(input_ids=ids).logits[0, example["answer_start"] - 1 : -1]
        answer = ids[0, example["answer_start"] :]
        alone += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
        tokens += len(answer)
    for batch in (tail, full):
        loss = answer_loss(model(**batch.inputs).logits, batch.labels).item()
        assert loss == pytest.approx(alone / tokens, rel=1e-5)
    assert model(**full.inputs, labels=full.labels).loss.item() == pytest.approx(alone / tokens, rel=1e-5)


def test_records_are_told_apart_from_other_records():
    one, other = Record("S", "Q", "A."), Record("S", "Q", "B.")
    assert digest([one], [other]) == digest([one], [other])
    assert len({digest([one], [other]), digest([other], [one]), digest([one, other], []), digest([one], [])}) == 4


def test_unigram_baseline_is_that_of_smoothed_counts():
    train = [{"input_ids": [9, 9, 5, 5, 6], "answer_start": 2}]
    held_out = [{"input_ids": [9, 5, 7], "answer_start": 1}]
    # 5 twice, 6 once, anything else never: (2 + 1) / 6 and (0 + 1) / 6
    assert unigram_loss(train, held_out) == pytest.approx((math.log(6 / 3) + math.log(6 / 1)) / 2)
