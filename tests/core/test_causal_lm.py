"""The one loader: a folder's own code and generation settings count for nothing, and a fault is one sentence."""

import io
import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from affect.core.causal_lm import add_lora, answers, find_weights, load_causal_lm, load_tokenizer, pad_left, stop_tokens

PROMPTS = [[30, 31, 32, 33], [40], [50, 51]]
CODE = """
from pathlib import Path
Path({written!r}).write_text("run")
from transformers import Qwen2Config, Qwen2ForCausalLM, PreTrainedTokenizerFast
class OwnConfig(Qwen2Config):
    model_type = {model_type!r}
class Own(Qwen2ForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(base, folder, model_type):
    """Copy a model and give it code of its own, which would write the file whose path is returned."""
    shutil.copytree(base, folder)
    written = folder / "written"
    (folder / "own.py").write_text(CODE.format(written=str(written), model_type=model_type))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return written


@pytest.fixture
def says_yes(monkeypatch):
    """Standard input that says yes to whatever is asked."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


def test_own_code_beside_a_known_type_is_left_alone(plain_llm, tmp_path, says_yes):
    written = with_code(plain_llm, tmp_path / "llm", "qwen2")
    model, same = load_causal_lm(tmp_path / "llm"), load_causal_lm(plain_llm)
    load_tokenizer(tmp_path / "llm")
    assert type(model) is type(same) and not written.exists()
    assert sys.stdin.read().count("y") == 20  # nothing was asked


def test_a_model_that_needs_own_code_is_refused_in_one_sentence(plain_llm, tmp_path, says_yes):
    written = with_code(plain_llm, tmp_path / "llm", "own-type")
    with pytest.raises(ValueError, match=r"^language model: .*llm cannot be loaded \(only code of its own") as caught:
        load_causal_lm(tmp_path / "llm")
    assert "\n" not in str(caught.value)
    try:
        load_tokenizer(tmp_path / "llm")
    except ValueError as error:
        assert "\n" not in str(error)
    assert not written.exists() and sys.stdin.read().count("y") == 20


def test_greedy_is_greedy_whatever_the_folder_says(plain_llm, tmp_path):
    shutil.copytree(plain_llm, tmp_path / "llm")
    path = tmp_path / "llm/generation_config.json"
    inherited = {"do_sample": True, "repetition_penalty": 1.9, "top_k": 2, "temperature": 3.0, "max_new_tokens": 2}
    path.write_text(json.dumps(json.loads(path.read_text()) | inherited | {"suppress_tokens": list(range(200))}))
    said = []
    for folder in (plain_llm, tmp_path / "llm"):
        tokenizer = load_tokenizer(folder)
        model = load_causal_lm(folder, tokenizer=tokenizer)
        model.generation_config.max_new_tokens = 12
        said.append(list(answers(model, tokenizer, PROMPTS, 3)))
        kept = {key: value for key, value in model.generation_config.to_diff_dict().items() if value is not None}
        assert kept.keys() - {"transformers_version"} == {"eos_token_id", "pad_token_id", "max_new_tokens"}
    assert said[0] == said[1] and any(said[0])


def test_answers_end_where_model_or_tokenizer_says(plain_llm):
    tokenizer = load_tokenizer(plain_llm)
    model = load_causal_lm(plain_llm, tokenizer=tokenizer)
    model.generation_config.eos_token_id = [7, 3]
    assert stop_tokens(model.generation_config, tokenizer) == sorted({3, 7, tokenizer.eos_token_id})
    assert stop_tokens(None) == []


def test_answers_do_not_depend_on_their_batch(plain_llm):
    tokenizer, model = load_tokenizer(plain_llm), load_causal_lm(plain_llm)
    model.generation_config.max_new_tokens = 8
    together = list(answers(model, tokenizer, PROMPTS, 3))
    assert together == list(answers(model, tokenizer, PROMPTS, 1)) and len(set(together)) == 3
    ids, mask = pad_left([(5, 6), (7,)])
    assert ids.tolist() == [[5, 6], [0, 7]] and mask.tolist() == [[1, 1], [0, 1]]


def test_the_library_pads_where_answers_follow(plain_llm):
    assert load_tokenizer(plain_llm).padding_side == "left"
    assert load_causal_lm(plain_llm, torch.bfloat16).dtype == torch.bfloat16


def test_names_are_looked_up_and_missing_folders_named(plain_llm, tmp_path, monkeypatch):
    monkeypatch.setenv("AFFECT_TINY", str(plain_llm))
    assert find_weights("TINY", "r") == str(plain_llm)
    assert find_weights("owner/name", "r") == "owner/name"
    for name in (tmp_path / "gone", "./gone/away", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"^r: the folder .* does not exist; .* AFFECT_WEIGHTS names$"):
            find_weights(name, "r")


def test_broken_folders_are_one_sentence(plain_llm, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(plain_llm, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes(b"not weights")
    for folder, adapter in ((tmp_path / "empty", None), (tmp_path / "cut", None), (plain_llm, tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"^r.*: .* cannot be loaded \(") as caught:
            load_causal_lm(folder, adapter=adapter, role="r")
        assert "\n" not in str(caught.value) and str(adapter or folder) in str(caught.value)
    with pytest.raises(ValueError, match=r"^r: .*empty cannot be loaded"):
        load_tokenizer(tmp_path / "empty", "r")


def test_the_library_would_run_that_code_when_told_to(plain_llm, tmp_path, says_yes):
    """What the tests above refuse is real: trusted, the same folder writes its file."""
    written = with_code(plain_llm, tmp_path / "llm", "own-type")
    AutoModelForCausalLM.from_pretrained(tmp_path / "llm", trust_remote_code=True)
    AutoTokenizer.from_pretrained(tmp_path / "llm", trust_remote_code=True)
    assert written.exists()


def test_an_adapter_of_an_absurd_rank_is_refused_before_it_is_made(plain_llm, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    add_lora(load_causal_lm(plain_llm), lora, False, "toy").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 2', '"r": 200000000'))
    with pytest.raises(ValueError, match="at most 1,024 rows of an adapter, found 200,000,000"):
        load_causal_lm(plain_llm, adapter=tmp_path)
