"""AU agent training from YAML to a loaded adapter, on tiny models: what is learned, going on, refusals."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

import affect.cli.train as train_script
import affect.tasks.au_agent as au_agent
import prepare_au_agent_data
from affect.core.config import parse, read_yaml
from affect.engine.launch import start_accelerator
from affect.engine.run_folder import locked
from affect.tasks.au_agent_config import AgentConfig
from affect.tasks.au_agent_records import read_sets
from extractors.au.agent import AuAgent
from extractors.au.templates import INSTRUCTION, frame_input
from tiny_world import save_tiny_llm

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "train_configs/au_agent_lora.yaml"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAUGHT = {
    "The lip corners are slightly drawn up.": {"AU12_r": 1.5},
    "The face is at rest.": {},
    "The brows are markedly drawn down.": {"AU04_r": 3.1, "AU07_r": 0.9},
}
EMBEDDINGS = "embed_tokens,lm_head"
"""Of a base that was never trained these must be learned, too: LoRA alone leaves them random."""


@pytest.fixture(scope="module")
def chat_llm(tmp_path_factory):
    """Folder of a tiny random language model with a chat template."""
    records = [f"{frame_input(frame)}\n{answer}" for answer, frame in TAUGHT.items()]
    folder = save_tiny_llm(tmp_path_factory.mktemp("agent") / "llm", records * 4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, chat_llm):
    """Path of a configuration that teaches three sentences."""
    records = [
        {"instruction": INSTRUCTION, "input": frame_input(frame), "output": answer} for answer, frame in TAUGHT.items()
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {
        "stage": "sft",
        "model_name_or_path": str(chat_llm),
        "additional_target": EMBEDDINGS,
        "lora_dropout": 0.1,
        "dataset": str(tmp_path / "records.jsonl"),
        "output_dir": str(tmp_path / "agent"),
        "per_device_train_batch_size": 1,
        "learning_rate": 0.01,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 2,
        "visualize_training": False,
    }
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def read(path, options=()) -> AgentConfig:
    return parse(AgentConfig, read_yaml(path), str(path), options)


def train_au_agent(path, options=()) -> Path | None:
    """Train as a file says; return the run's folder, None where it was stopped."""
    config = read(path, options)
    return Path(config.output_dir) if au_agent.train_au_agent(config, path) else None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint_*"))


def _adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- what is learned -------------------------------------------------------------------------------


@pytest.mark.parametrize("templated", [True, False], ids=["template", "plain"])
def test_agent_says_what_it_was_taught(config, chat_llm, tmp_path, templated):
    model = tmp_path / "llm"
    shutil.copytree(chat_llm, model)
    if not templated:
        (model / "chat_template.jinja").unlink()
    batch = ["per_device_train_batch_size=3", "max_steps=80", "save_steps=80", "lora_dropout=0"]
    adapter = train_au_agent(config, [f"model_name_or_path={model}", *batch])
    agent = AuAgent(model, adapter, max_new_tokens=60)
    assert (agent.tokenizer.chat_template is not None) == templated
    assert [answer for _, answer in agent.describe(list(TAUGHT.values()))] == list(TAUGHT)
    assert [answer for _, answer in AuAgent(model, max_new_tokens=60).describe(list(TAUGHT.values()))] != list(TAUGHT)


def test_real_records_are_learned_well_below_the_unigram_baseline(shared, chat_llm, tmp_path):
    data = tmp_path / "data"
    real = shared / "data/text/au_instruction_val.jsonl"
    prepare_au_agent_data.main(["--jsonl", str(real), "--save_root", str(data)])
    corpus = ["\n".join(json.loads(line).values()) for line in (data / "au_agent_train.jsonl").open(encoding="utf-8")]
    tokenizer = AutoTokenizer.from_pretrained(chat_llm).train_new_from_iterator(corpus, 800)
    tokenizer.save_pretrained(tmp_path / "llm")
    width = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=800, num_hidden_layers=2, **width)).save_pretrained(tmp_path / "llm")
    options = {
        "model_name_or_path": tmp_path / "llm",
        "additional_target": EMBEDDINGS,
        "dataset_dir": data,
        "output_dir": tmp_path / "agent",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.005,
        "max_steps": 50,
        "warmup_steps": 5,
        "eval_steps": 50,
        "save_steps": 50,
        "gradient_checkpointing": False,
    }
    assert train_script.main(["--cfg-path", str(SHIPPED), "--options", *(f"{k}={v}" for k, v in options.items())]) == 0
    results = json.loads((tmp_path / "agent/results.json").read_text())
    assert (results["train_records"], results["held_out_records"], results["steps"]) == (1458, 143, 50)
    assert results["held_out_loss"] < results["unigram_loss"] - 1 < results["held_out_loss_before"]
    assert (tmp_path / "agent/loss_curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("accumulated", [1, 3], ids=["one batch a step", "three batches a step"])
def test_every_step_is_that_of_transformers(config, tmp_path, accumulated):
    """Where a step reads all records, so that their order is nothing, weights end where those of its Trainer end."""
    shared = {
        "per_device_train_batch_size": 3 // accumulated,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": 0.01,
        "max_steps": 8,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "max_grad_norm": 0.5,
    }
    options = [f"{key}={value}" for key, value in shared.items()]
    ours = _adapter(train_au_agent(config, [*options, "lora_dropout=0"]))
    settings = read(config, [*options, "lora_dropout=0"])
    task = au_agent.open_task(settings, start_accelerator(settings), *read_sets(settings))
    task.save(tmp_path / "before", task.weights())

    def collate(examples):
        batch = au_agent.collate(examples, task._accepted)
        return batch.inputs | {"labels": batch.labels}

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"), report_to="none", remove_unused_columns=False, use_cpu=True, **shared
    )
    Trainer(task.model, arguments, collate, task.examples).train()
    task.save(tmp_path / "theirs", task.weights())
    theirs, before = (_adapter(tmp_path / name) for name in ("theirs", "before"))
    assert max((theirs[name] - weight).abs().max() for name, weight in before.items()) > 0.02
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-5)


def test_users_file_trains_with_nothing_but_its_paths_changed(shared, config, chat_llm, tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"au_instruction_dataset": {"file_name": "records.jsonl"}}')
    file = shared / "goldens/user_configs/au_agent_lora_config.yaml"
    paths = [f"model_name_or_path={chat_llm}", f"dataset_dir={tmp_path}", f"output_dir={tmp_path / 'agent'}"]
    assert train_script.main(["--cfg-path", str(file), "--options", *paths]) == 0
    results = json.loads((tmp_path / "agent/results.json").read_text())
    assert (results["train_records"], results["held_out_records"], results["epochs"]) == (2, 1, 3)
    assert AuAgent(chat_llm, tmp_path / "agent", max_new_tokens=4).describe([{}])


@pytest.mark.parametrize("settings", [["gradient_checkpointing=true"], ["group_by_length=true", "val_size=1"]])
def test_ways_of_training_end_with_an_adapter(config, chat_llm, settings):
    adapter = train_au_agent(config, [*settings, "max_steps=2"])
    moved = [name for name, weight in _adapter(adapter).items() if "lora_B" in name and weight.any()]
    assert len(moved) == 14  # every linear layer of two blocks
    assert AuAgent(chat_llm, adapter, max_new_tokens=4).describe([{}])


def test_recomputed_activations_change_nothing(config, tmp_path):
    kept = train_au_agent(config)
    again = train_au_agent(config, ["gradient_checkpointing=true", f"output_dir={tmp_path / 'again'}"])
    for name, weight in _adapter(kept).items():
        torch.testing.assert_close(weight, _adapter(again)[name], rtol=0, atol=1e-5)


def test_held_out_loss_does_not_depend_on_batches(config, tmp_path):
    held_out = [f"eval_dataset={tmp_path / 'records.jsonl'}", "max_steps=1"]
    found = []
    for size in (1, 3):
        adapter = train_au_agent(
            config, [*held_out, f"per_device_eval_batch_size={size}", f"output_dir={tmp_path / str(size)}"]
        )
        results = json.loads((adapter / "results.json").read_text())
        found.append((results["held_out_loss_before"], results["held_out_loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][0] != found[0][1]


def test_two_processes_train_as_one_of_twice_the_batch(config, tmp_path):
    records = tmp_path / "records.jsonl"
    data = [f"dataset={records},{records}", f"eval_dataset={records}"]
    settings = [*data, "lora_dropout=0", "max_steps=4", "save_strategy=no"]
    one = train_au_agent(config, [*settings, "per_device_train_batch_size=2"])
    options = [*settings, f"output_dir={tmp_path / 'two'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [*command, "--cfg-path", str(config), "--options", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Train: data epoch") == 4
    alone, together = (json.loads((folder / "results.json").read_text()) for folder in (one, tmp_path / "two"))
    assert together == pytest.approx(alone, abs=1e-5)


# -- going on --------------------------------------------------------------------------------------


def test_stopped_run_goes_on_to_the_same_bits(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = train_au_agent(config)
    whole, results = _adapter(folder), (folder / "results.json").read_text()
    first, second, last = checkpoints(folder)
    for file in ("results.json", "adapter_model.safetensors"):
        (folder / file).unlink()
    last.rename(folder / f".{last.name}.partial")  # killed while it was written
    shutil.rmtree(second)
    train_au_agent(config, ["overwrite_output_dir=true"])
    assert f"going on from {first}" in caplog.text
    assert _same(whole, _adapter(folder)) and (folder / "results.json").read_text() == results
    assert [path.name for path in checkpoints(folder)] == [first.name, second.name, last.name]


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_the_adapter_is_that_of_the_best_or_of_the_last_step(config, tmp_path, best):
    other = tmp_path / "other.jsonl"  # what is never taught gets worse with every step
    other.write_text(json.dumps({"instruction": "?", "output": "#zq %zq"}))
    settings = [f"eval_dataset={other}", "eval_strategy=steps", "eval_steps=2", "learning_rate=0.06"]
    settings += [f"load_best_model_at_end={best}", "save_total_limit=1"]
    folder = train_au_agent(config, settings)
    results = json.loads((folder / "results.json").read_text())
    kept = checkpoints(folder)
    assert results["best_step"] == 2 and len(kept) == 2  # the last one, and the best
    assert _same(_adapter(folder), _adapter(kept[not best])) and not _same(_adapter(kept[0]), _adapter(kept[1]))
    scores = [json.loads((path / "state.json").read_text())["val_loss"] for path in kept]
    assert results["held_out_loss"] == scores[not best] and scores[0] < scores[1]
    assert AuAgent(read(config).model_name_or_path, kept[0], max_new_tokens=4).describe([{}])


def test_sigterm_leaves_a_checkpoint_to_go_on_from(config, tmp_path, monkeypatch):
    whole = _adapter(train_au_agent(config, [f"output_dir={tmp_path / 'whole'}"]))
    collate, calls = au_agent.collate, []

    def signalling(examples, accepted):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return collate(examples, accepted)

    monkeypatch.setattr(au_agent, "collate", signalling)
    assert train_au_agent(config) is None
    folder = tmp_path / "agent"
    assert not (folder / "results.json").exists() and not (folder / "adapter_model.safetensors").exists()
    assert json.loads((checkpoints(folder)[-1] / "state.json").read_text())["step"] == 3
    assert train_au_agent(config) == folder and _same(whole, _adapter(folder))


def test_finished_run_is_left_alone(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    adapter = train_au_agent(config)
    before = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert train_au_agent(config, ["logging_steps=2"]) == adapter
    assert "all epochs are done; for a new run use another" in caplog.text
    for checkpoint in checkpoints(adapter):  # users keep the adapter alone
        shutil.rmtree(checkpoint)
    assert train_au_agent(config) == adapter and "this run is finished" in caplog.text
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_other_settings_or_data_need_another_folder(config, tmp_path):
    first = _adapter(train_au_agent(config))
    with pytest.raises(ValueError, match=r"holds a run with other settings \(init_lr\); give another output_dir"):
        train_au_agent(config, ["learning_rate=0.02"])
    records = tmp_path / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match=r"other settings \(records\)"):
        train_au_agent(config)
    kept = checkpoints(tmp_path / "agent")
    with locked(tmp_path / "agent"), pytest.raises(ValueError, match="another process is training there"):
        train_au_agent(config, ["overwrite_output_dir=true"])
    assert checkpoints(tmp_path / "agent") == kept
    anew = train_au_agent(config, ["overwrite_output_dir=true"])
    assert not _same(first, _adapter(anew)) and json.loads((anew / "results.json").read_text())["train_records"] == 2


def test_a_folder_of_transformers_trainer_is_not_gone_on_from(config, chat_llm, tmp_path):
    old = train_au_agent(config)
    for checkpoint in checkpoints(old):
        shutil.rmtree(checkpoint)
    (old / "checkpoint-6").mkdir()
    (old / "checkpoint-6/trainer_state.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"earlier version .*checkpoint-6.*, which cannot be gone on from; give"
    ) as caught:
        train_au_agent(config)
    assert "\n" not in str(caught.value)
    assert AuAgent(chat_llm, old, max_new_tokens=4).describe([{}])
    assert train_au_agent(config, ["overwrite_output_dir=true"]) == old and not (old / "checkpoint-6").exists()


# -- refusals --------------------------------------------------------------------------------------


def test_models_that_cannot_be_used_are_named(config, chat_llm, tmp_path):
    (tmp_path / "empty").mkdir()
    for model, message in (
        (tmp_path / "gone", "model_name_or_path: the folder .*gone does not exist"),
        (tmp_path / "empty", "model_name_or_path: .*empty cannot be loaded"),
        ("nobody/no-such-model", "nobody/no-such-model cannot be loaded"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            train_au_agent(config, [f"model_name_or_path={model}"])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"lora_target, additional_target: .* has no such layers"):
        train_au_agent(config, ["lora_target=w_proj"])


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    collate, calls = au_agent.collate, []

    def breaking(examples, accepted):
        calls.append(1)
        batch = collate(examples, accepted)
        return replace(batch, labels=torch.full_like(batch.labels, -100)) if len(calls) > 4 else batch

    monkeypatch.setattr(au_agent, "collate", breaking)
    with pytest.raises(FloatingPointError, match=r"step \d: the loss is nan on records [123]; .* lower"):
        train_au_agent(config)
    (kept,) = (path for path in checkpoints(tmp_path / "agent") if path.name.startswith("checkpoint_000002"))
    assert (kept / "adapter_model.safetensors").exists()
    assert not (tmp_path / "agent/results.json").exists()
