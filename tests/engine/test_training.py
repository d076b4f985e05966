"""Training through the script: what is written, and that a killed run goes on as if it had not been."""

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import affect.engine.loop
import affect.engine.trainer
from affect.cli import train
from affect.data.config import read_config, save_config
from affect.data.dataset import open_datasets
from affect.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from affect.engine.run_folder import choose_folder
from affect.features.store import FeatureError
from affect.models.saved import load_weights
from toy_answers import load_answerer
from train_runs import assert_same_run, kill_at, losses, run


def test_a_run_leaves_checkpoints_curves_and_its_configuration(tiny_world, tmp_path):
    tiny_world.run.visualize_training = True
    tiny_world.run.keep_checkpoints = 2
    folder = run(tiny_world, tmp_path)
    kept = list_checkpoints(folder)
    assert [read_state(c).epoch for c in kept] == [2, 3]
    assert read_state(kept[-1]).finished
    assert {p.name for p in kept[-1].iterdir()} >= {"fusion.safetensors", "adapter", "optimizer.pt", "state.json"}
    assert (kept[-1] / "adapter" / "adapter_config.json").is_file()
    assert read_config(kept[-1]) == tiny_world
    assert (folder / "training_curves" / "training_curves_epoch3.png").is_file()
    assert len(losses(kept[-1])) == 12


def test_a_run_whose_steps_were_single_batches_is_refused(tiny_world, tmp_path):
    first = list_checkpoints(run(tiny_world, tmp_path))[0]
    np.savez(first / "curves.npz", steps=np.arange(4))
    tiny_world.run.output_dir = str(tmp_path / "on")
    with pytest.raises(ValueError, match=r"steps were single batches.*begin anew in another run.output_dir"):
        run(tiny_world, tmp_path, f"run.resume_ckpt_path={first}")


@pytest.mark.parametrize("line", ["epoch 1 done", "Train: data epoch: [2]  [2/4]"])
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tiny_world, tmp_path, line):
    """SIGKILL at any step; the same command again gives what an unbroken run gives, data order included."""
    tiny_world.run.log_every = 1
    if "[2]" in line:
        tiny_world.run.bucket_by_length, tiny_world.run.gradient_accumulation_steps = True, 3
        tiny_world.run.ema, tiny_world.run.save_every = 0.9, 2
    whole = run(tiny_world, tmp_path)
    tiny_world.run.output_dir = str(tmp_path / "broken")
    kill_at(tiny_world, tmp_path, line)
    assert read_state(find_checkpoint(tmp_path / "broken")).step == (6 if "[2]" in line else 4)
    assert_same_run(run(tiny_world, tmp_path), whole)


def test_a_finished_run_is_left_alone(tiny_world, tmp_path):
    folder = run(tiny_world, tmp_path)
    before = find_checkpoint(folder).stat().st_mtime_ns
    run(tiny_world, tmp_path)
    assert find_checkpoint(folder).stat().st_mtime_ns == before


def test_another_configuration_is_not_mixed_into_a_run(tiny_world, tmp_path):
    run(tiny_world, tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(run\.seed\).*output_dir"):
        run(tiny_world, tmp_path, "run.seed=9")


def test_without_an_output_dir_runs_are_named_after_config_and_time(tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_world.run.output_dir = None
    tiny_world.run.max_epoch = 1
    save_config(tiny_world, tmp_path / "toy.yaml")
    train.main(["--cfg-path", "toy.yaml"])
    (folder,) = (tmp_path / "output" / "toy").iterdir()
    assert folder.name.startswith("toy_20")
    assert find_checkpoint(tmp_path / "output" / "toy").parent.samefile(folder)


def test_two_runs_of_one_minute_have_folders_of_their_own(tiny_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_world.run.output_dir = None
    tiny_world.run.max_epoch = tiny_world.run.iters_per_epoch = 1
    tiny_world.run.warmup_steps = 0
    save_config(tiny_world, tmp_path / "toy.yaml")
    for seed in (1, 2):
        train.main(["--cfg-path", "toy.yaml", "--options", f"run.seed={seed}"])
    folders = list((tmp_path / "output" / "toy").iterdir())
    assert len(folders) == 2
    assert all(len(list_checkpoints(folder)) == 1 for folder in folders)


def test_a_run_from_an_asked_checkpoint_goes_on_from_its_own_when_stopped(tiny_world, tmp_path):
    first = list_checkpoints(run(tiny_world, tmp_path))[0]
    tiny_world.run.output_dir = str(tmp_path / "second")
    _, start, _ = choose_folder(parse_options(tiny_world, resume_ckpt_path=str(first)), "toy")
    assert start == first
    folder = run(tiny_world, tmp_path, f"run.resume_ckpt_path={first}")
    _, start, _ = choose_folder(parse_options(tiny_world, resume_ckpt_path=str(first)), "toy")
    assert start == find_checkpoint(folder)
    assert len({read_state(checkpoint).epoch for checkpoint in list_checkpoints(folder)}) == len(
        list_checkpoints(folder)
    )


def parse_options(config, **settings):
    return config.model_copy(update={"run": config.run.model_copy(update=settings)})


def test_missing_labels_are_found_before_training(tiny_world, tmp_path):
    table = pd.read_csv(tmp_path / "clips.csv")
    table.loc[1, "reason"] = ""
    table.to_csv(tmp_path / "clips.csv", index=False)
    with pytest.raises(ValueError, match="clip 'c1' of toy has no description"):
        run(tiny_world, tmp_path)


def test_nothing_to_train_is_refused(tiny_world, tmp_path):
    tiny_world.model.frozen_llm, tiny_world.datasets["toy"].face_or_frame = True, "textonly"
    with pytest.raises(ValueError, match="nothing is trainable"):
        run(tiny_world, tmp_path)


def test_training_lowers_the_loss(tiny_world, tmp_path):
    tiny_world.run.max_epoch, tiny_world.run.iters_per_epoch, tiny_world.run.init_lr = 2, 30, 5e-3
    values = losses(find_checkpoint(run(tiny_world, tmp_path)))
    assert values[-5:].mean() < 0.97 * values[:5].mean()


def test_a_checkpoint_that_does_not_fit_is_named(tiny_world, tmp_path):
    checkpoint = find_checkpoint(run(tiny_world, tmp_path))
    tiny_world.model.num_multi_query_token = 5
    with pytest.raises(ValueError, match=r"does not fit the config: fusion\.qformer\.query_tokens is \[1, 4, 16\]"):
        load_answerer(tiny_world, checkpoint, "multiface_audio_face_frame_au_text")


def test_weights_survive_the_checkpoint(tiny_world, tmp_path):
    checkpoint = find_checkpoint(run(tiny_world, tmp_path))
    answerer = load_answerer(tiny_world, checkpoint, "multiface_audio_face_frame_au_text")
    stored = load_file(checkpoint / "fusion.safetensors")
    assert all((answerer.model.state_dict()[name] == value).all() for name, value in stored.items())
    assert stored["norms.audio.deviation"].ne(1).any()  # statistics of the training set came along
    (checkpoint / "fusion.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(checkpoint, answerer.model)


def test_answers_name_the_streams_they_rest_on(tiny_world, tmp_path):
    checkpoint = find_checkpoint(run(tiny_world, tmp_path))
    answerer = load_answerer(tiny_world, checkpoint, "multiface_audio_face_frame_au_text")
    (dataset,) = open_datasets(tiny_world, "train")
    answers = {answer.name: answer for answer in answerer.answer_dataset(dataset)}
    assert answers["c3"].missing == ["face", "au"]
    assert answers["c3"].streams == ["multi", "audio", "frame"]
    assert answers["c0"].missing == []
    with pytest.raises(ValueError, match="expected a layout like those it was trained on"):
        tiny_world.datasets["toy"].face_or_frame = "audioonly"
        load_answerer(tiny_world, checkpoint, "faceonly")


def test_bad_arrays_are_found_before_training(tiny_world, tmp_path):
    for name in ("c1", "c2"):
        (path,) = (tmp_path / "features" / "toy").glob(f"audio_*/{name}.npy")
        np.save(path, np.full((8, 10), np.nan, np.float32))
    with pytest.raises(FeatureError, match=r"c1\.npy: expected finite numbers(.|\n)*c2\.npy"):
        run(tiny_world, tmp_path)
    assert not list_checkpoints(tmp_path / "run")


def test_a_loss_that_is_not_finite_names_the_clips_and_keeps_the_checkpoint(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(affect.engine.loop, "learning_rate", lambda step, *rest: 1e-3 if step < 5 else 1e30)
    with pytest.raises(FloatingPointError, match=r"step [67]: the loss is .* on clips c\d"):
        run(tiny_world, tmp_path)
    (kept,) = list_checkpoints(tmp_path / "run")
    assert read_state(kept).epoch == 1
    assert np.isfinite(losses(kept)).all()


def test_weights_that_are_not_finite_are_not_written(tiny_world, tmp_path, monkeypatch):
    """The last step of an epoch can have a finite loss and a gradient that is not."""
    step, count = affect.engine.trainer.training_step, iter(range(10**6))

    def broken_step(task, *arguments):
        report = step(task, *arguments)
        if next(count) == 7:
            next(iter(task.model.trainable().values())).data.fill_(float("nan"))
        return report

    monkeypatch.setattr(affect.engine.trainer, "training_step", broken_step)
    with pytest.raises(FloatingPointError, match=r"step 8: weights are not finite \(\S+ and 0 more\)"):
        run(tiny_world, tmp_path)
    (kept,) = list_checkpoints(tmp_path / "run")
    assert read_state(kept).epoch == 1
