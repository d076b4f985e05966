"""What train.py makes of a configuration before the first step."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from transformers import Qwen2Model

import affect.engine.launch
import affect.engine.loop
import affect.tasks.affectgpt
from affect.cli import train
from affect.data.config import ConfigError, RunConfig, load_config
from affect.data.dataset import open_datasets
from affect.engine.checkpoint import find_checkpoint, list_checkpoints
from affect.engine.launch import check_trackers, start_accelerator
from affect.engine.sharding import sharding_plugin
from affect.models.affectgpt import build_affectgpt
from remembering_tracker import Remembering
from train_runs import losses, run


@pytest.fixture
def nothing_loads(monkeypatch):
    def loaded(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(affect.tasks.affectgpt, "build_affectgpt", loaded)


def test_a_device_that_does_not_exist_is_refused_before_anything_is_loaded(tiny_world, tmp_path, nothing_loads):
    tiny_world.run.device = "cuda:7"
    with pytest.raises(ValueError, match=r"run\.device: cuda:7 does not exist, this machine has"):
        run(tiny_world, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("setting", [{"amp": True}, {"device": "cuda"}])
def test_mixed_precision_on_the_cpu_is_ignored_with_one_line(setting, caplog):
    with caplog.at_level(logging.INFO):
        accelerator = start_accelerator(RunConfig(**setting))
    assert accelerator.mixed_precision == "no"
    assert [record.message for record in caplog.records] == ["no GPU is used: training on the CPU in float32"]


def test_one_index_cannot_serve_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(affect.engine.launch, "pick_device", lambda name: torch.device("cuda", 0))
    with pytest.raises(ValueError, match="2 processes cannot share cuda:0"):
        start_accelerator(RunConfig(device="cuda:0"))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(affect.engine.launch, "pick_device", lambda name: torch.device("cuda"))
    with pytest.raises(ValueError, match=r"4 processes were started .* its 2 GPUs; give torchrun a smaller"):
        start_accelerator(RunConfig())


def test_dividing_weights_over_one_process_is_said_to_do_nothing(caplog):
    with caplog.at_level(logging.INFO):
        start_accelerator(RunConfig(fsdp=True, device="cpu"))
    assert "run.fsdp divides weights over several GPUs; with none it does nothing" in caplog.messages


def test_the_language_models_layers_are_what_is_divided(tiny_world):
    model = build_affectgpt(tiny_world.model, [])
    plugin = sharding_plugin()
    affect.engine.sharding.prepare_sharding(model, plugin)
    plugin.set_auto_wrap_policy(model)
    assert isinstance(plugin, FullyShardedDataParallelPlugin)
    assert {cls.__name__ for cls in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {"Qwen2DecoderLayer"}


def test_early_stop_without_a_validation_split_is_a_contradiction(tmp_path):
    (tmp_path / "x.yaml").write_text("run: {early_stop: 3}")
    with pytest.raises(ConfigError, match="early_stop watches the loss of a validation split; set val_split too"):
        load_config(tmp_path / "x.yaml")


def test_trackers_get_the_configuration_and_the_losses(tiny_world, tmp_path, monkeypatch):
    tracker = Remembering()
    monkeypatch.setattr(affect.engine.launch, "filter_trackers", lambda names, folder: [tracker])
    monkeypatch.setattr(affect.engine.launch, "find_spec", lambda name: name)
    tiny_world.run.trackers, tiny_world.run.log_every, tiny_world.run.val_split = ["tensorboard"], 1, "test"
    folder = run(tiny_world, tmp_path)
    assert tracker.config["run.init_lr"] == 1e-3
    assert tracker.config["datasets.toy.visual_encoder"] == "V"
    assert [values["loss"] for _, values in tracker.logged if "loss" in values] == list(losses(find_checkpoint(folder)))
    assert [step for step, values in tracker.logged if "val_loss" in values] == [4, 8, 12]
    assert tracker.finished


def test_tensorboard_writes_below_the_run(tiny_world, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    tiny_world.run.trackers = ["tensorboard"]
    folder = run(tiny_world, tmp_path)
    assert list((folder / "trackers").rglob("events.out.tfevents.*"))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(
    tiny_world, tmp_path, nothing_loads, monkeypatch
):
    monkeypatch.setattr(affect.engine.launch, "find_spec", lambda name: None)
    tiny_world.run.trackers = ["wandb"]
    with pytest.raises(ValueError, match=r"run\.trackers: wandb is not installed; .*affect\[wandb\]"):
        run(tiny_world, tmp_path)
    check_trackers(RunConfig())


@pytest.mark.parametrize(
    ("content", "agent"),
    [
        ({"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "stage": "sft"}, True),
        ({"task": "au_agent"}, True),
        ({"model": {"arch": "affectgpt"}}, False),
        ({"model": None}, False),
        (["model"], False),
    ],
)
def test_the_au_agents_files_go_to_its_own_training(tmp_path, content, agent, monkeypatch):
    path, seen = tmp_path / "x.yaml", []
    least = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o"}
    path.write_text(yaml.safe_dump({**least, **content} if agent else content))
    monkeypatch.setattr("affect.tasks.au_agent.train_au_agent", lambda *arguments: seen.append(arguments) or True)
    if agent:
        assert train.main(["--cfg-path", str(path), "--options", "learning_rate=1"]) == 0
        ((config, where),) = seen
        assert (where, config.task, config.init_lr) == (str(path), "au_agent", 1)
    else:
        with pytest.raises(ValueError, match=r"x\.yaml|datasets"):
            train.main(["--cfg-path", str(path)])


def test_features_made_on_the_fly_and_missing_sentences_are_asked_for_before_training(
    tiny_world, tmp_path, monkeypatch
):
    asked = []
    (dataset,) = open_datasets(tiny_world, "train")
    stores = {"toy": dataset.store}
    monkeypatch.setattr("affect.cli.live.live_stores", lambda config, device: asked.append(device) or stores)
    monkeypatch.setattr("affect.cli.au_fill.fill_sentences", lambda config, split: asked.append(split))
    tiny_world.model.use_au_agent, tiny_world.model.skip_encoders = True, False
    tiny_world.datasets["toy"].use_preextracted_features = False
    tiny_world.datasets["toy"].preextracted_root = str(tmp_path / "nowhere")
    tiny_world.run.val_split = "test"
    assert list_checkpoints(run(tiny_world, tmp_path))
    assert asked == ["train", "test", "cpu"]


def test_a_scalers_state_goes_through_the_checkpoint(tiny_world, tmp_path, monkeypatch):
    """float16 needs a GPU; the scaler that accelerate would have runs on the CPU as well."""

    def scaled(settings):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0, growth_interval=5)
        return accelerator

    monkeypatch.setattr(affect.engine.loop, "start_accelerator", scaled)
    loaded = []
    original = torch.amp.GradScaler.load_state_dict
    monkeypatch.setattr(
        torch.amp.GradScaler, "load_state_dict", lambda self, state: loaded.append(state) or original(self, state)
    )
    tiny_world.run.max_grad_norm = 1.0
    whole = find_checkpoint(run(tiny_world, tmp_path))
    state = json.loads((whole / "scaler.json").read_text())
    assert (state["scale"], state["_growth_tracker"]) == (4096.0, 2)  # twelve steps, grown after five and ten
    tiny_world.run.output_dir = str(tmp_path / "again")
    first = list_checkpoints(whole.parent)[0]
    again = find_checkpoint(run(tiny_world, tmp_path, f"run.resume_ckpt_path={first}"))
    assert loaded == [json.loads((first / "scaler.json").read_text())]
    assert json.loads((again / "scaler.json").read_text()) == state
    assert list(losses(again)) == list(losses(whole))


def test_compiling_is_asked_for_with_lengths_that_vary(tiny_world, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: asked.append((type(self), settings)))
    tiny_world.run.max_epoch = 1
    run(tiny_world, tmp_path, "run.compile=True")
    assert asked == [(Qwen2Model, {"dynamic": True})]


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_the_compiled_language_model_gives_the_same_losses(tiny_world, tmp_path):
    tiny_world.run.max_epoch, tiny_world.run.iters_per_epoch, tiny_world.model.lora_dropout = 1, 3, 0.0
    whole = losses(find_checkpoint(run(tiny_world, tmp_path)))
    tiny_world.run.output_dir = str(tmp_path / "compiled")
    compiled = find_checkpoint(run(tiny_world, tmp_path, "run.compile=True"))
    np.testing.assert_allclose(losses(compiled), whole, atol=1e-5)
    assert "fusion.proj.weight" in load_file(compiled / "fusion.safetensors")  # names are those of any checkpoint
