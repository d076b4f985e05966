import json
import os
import shutil

import pytest
import torch
import yaml
from peft import get_peft_model_state_dict

from affect.cli import convert_checkpoint
from affect.core.layouts import LAYOUTS
from affect.core.schema import Modality
from affect.data.config import load_config, read_config
from affect.engine.checkpoint import find_checkpoint, read_state
from affect.models.affectgpt import build_affectgpt
from affect.models.llm import load_llm
from affect.models.saved import load_weights
from affect.tasks.reference_checkpoint import adapter_to_reference, fusion_shapes, fusion_to_reference, video_steps

LAYOUT = "multiface_audio_face_au_text"


@pytest.fixture
def cfg_path(tmp_path, tiny_llm):
    """A file as users of the reference have it."""
    content = {
        "model": {
            "llama_model": str(tiny_llm),
            "preextracted_visual_dim": 6,
            "preextracted_acoustic_dim": 5,
            "preextracted_au_dim": 4,
            "au_fusion_type": "attention",
            "qformer_hidden_size": 16,
            "qformer_heads": 2,
            "qformer_intermediate_size": 32,
        },
        "datasets": {"toy": {"face_or_frame": LAYOUT, "use_preextracted_features": True}},
        "run": {"iters_per_epoch": 5},
    }
    path = tmp_path / "users.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def pth(tmp_path, cfg_path):
    """A checkpoint as the reference writes it, of LoRA rank 4."""
    config = load_config(cfg_path, ["model.lora_r=4", "model.fuse_au=false"])
    generator = torch.Generator().manual_seed(0)
    shapes = fusion_shapes(config.model, [LAYOUTS[LAYOUT]], 32)
    fusion = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    adapter = get_peft_model_state_dict(load_llm(config.model))
    model = fusion_to_reference(fusion, 8, torch.randn(264, 6, generator=generator))
    model |= adapter_to_reference(adapter)
    model["image_llama_proj.weight"] = torch.randn(32, 6, generator=generator)
    model["video_Qformer.bert.embeddings.position_ids"] = torch.arange(16)[None]
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"model": model, "optimizer": optimizer, "config": {"run": {"seed": 42}}, "scaler": None, "epoch": 7}
    path = tmp_path / "checkpoint_000007_loss_0.623.pth"
    torch.save(content, path)
    return path


def convert(source, target, *more):
    convert_checkpoint.main([str(source), str(target), *map(str, more)])


def edit(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    else:
        assert found == expected


def test_there_and_back_is_the_same(tmp_path, cfg_path, pth):
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    convert(tmp_path / "run" / pth.stem, tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), torch.load(pth, weights_only=True))


def test_the_folder_is_a_checkpoint_of_ours(tmp_path, cfg_path, pth):
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    folder = find_checkpoint(tmp_path / "run", epoch=7)
    state, config = read_state(folder), read_config(folder)
    assert (state.epoch, state.step, state.loss, state.finished) == (7, 35, 0.623, True)
    assert config.model.lora_r == 4  # what the weights say
    assert not config.model.fuse_au
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 4
    model = build_affectgpt(config.model, [LAYOUTS[LAYOUT]])
    load_weights(folder, model)
    known = torch.load(pth, weights_only=True)["model"]
    assert torch.equal(model.branches["video"].proj.weight, known["affectgpt_proj.weight"])
    query = model.llm.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(
        query.lora_A.default.weight,
        known["llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"],
    )


def test_fusions_that_the_file_leaves_open_are_those_of_the_weights(tmp_path, cfg_path, pth):
    content = yaml.safe_load(cfg_path.read_text())
    del content["model"]["au_fusion_type"]  # as in users' files
    cfg_path.write_text(yaml.safe_dump(content))
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    model = read_config(tmp_path / "run" / pth.stem).model
    assert (model.video_fusion_type, model.audio_fusion_type, model.au_fusion_type) == (
        "qformer",
        "qformer",
        "attention",
    )
    with pytest.raises(ValueError, match=r"au_position_embedding\.weight is missing"):
        convert(pth, tmp_path / "other", "--cfg-path", cfg_path, "--options", "model.au_fusion_type=qformer")


def test_a_file_without_a_telling_name_says_its_epoch_itself(tmp_path, cfg_path, pth):
    convert(pth.rename(tmp_path / "best.pth"), tmp_path / "run", "--cfg-path", cfg_path)
    assert read_state(tmp_path / "run" / "checkpoint_000007_loss_0.000").epoch == 7


def test_weights_of_a_wrapped_model_are_known(tmp_path, cfg_path, pth):
    convert(pth, tmp_path / "plain", "--cfg-path", cfg_path)
    edit(pth, lambda content: content.update(model={f"module.{k}": w for k, w in content["model"].items()}))
    convert(pth, tmp_path / "wrapped", "--cfg-path", cfg_path)
    plain, wrapped = (tmp_path / name / pth.stem / "fusion.safetensors" for name in ("plain", "wrapped"))
    assert plain.read_bytes() == wrapped.read_bytes()


class Runs:
    """An object whose unpickling runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_file_that_could_run_code_is_refused(tmp_path, cfg_path, pth):
    marker = tmp_path / "ran"
    content = torch.load(pth, weights_only=True)
    torch.save({**content, "config": Runs(marker)}, pth)
    with pytest.raises(ValueError, match=r"found an object of \S*mkdir.*save the tensors alone"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    assert not marker.exists()


def test_a_damaged_file_is_named(tmp_path, cfg_path, pth):
    pth.write_bytes(pth.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint_000007_loss_0\.623\.pth: expected a checkpoint"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    torch.save([1, 2], pth)
    with pytest.raises(ValueError, match="weights under 'model'"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)


def test_weights_of_another_geometry_are_refused(tmp_path, cfg_path, pth):
    with pytest.raises(ValueError, match=r"audio_query_tokens is \[1, 1, 16\], expected \[1, 3, 16\]; use the YAML"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path, "--options", "model.num_audio_query_token=3")
    assert not (tmp_path / "run").exists()
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    config = read_config(tmp_path / "run" / pth.stem)
    for key, value, named in (("num_audio_query_token", 3, "branches.audio"), ("lora_r", 2, "lora_A")):
        other = build_affectgpt(config.model.model_copy(update={key: value}), [LAYOUTS[LAYOUT]])
        with pytest.raises(ValueError, match=rf"the checkpoint does not fit the config: \S*{named}.*use its own"):
            load_weights(tmp_path / "run" / pth.stem, other)


def test_weights_without_lora_are_refused(tmp_path, cfg_path, pth):
    edit(pth, lambda content: content.update(model={k: w for k, w in content["model"].items() if "lora" not in k}))
    with pytest.raises(ValueError, match="expected LoRA weights of one rank, found ranks none"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)


def test_nothing_is_written_over(tmp_path, cfg_path, pth):
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    with pytest.raises(ValueError, match="is there already"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)


def test_a_lone_picture_is_read_as_the_training_read_it(tmp_path, cfg_path, pth):
    for stored in (True, False):
        run = tmp_path / f"stored_{stored}"
        options = ["--options", f"datasets.toy.use_preextracted_features={stored}", "model.skip_encoders=False"]
        convert(pth, run, "--cfg-path", cfg_path, *options)
        assert read_config(run / pth.stem).model.score_single_picture is not stored


def test_action_units_in_words_have_no_weights(tmp_path, cfg_path, pth):
    edit(pth, lambda content: [content["model"].pop(key) for key in list(content["model"]) if key.startswith("au_")])
    with pytest.raises(ValueError, match="use the YAML file that it was trained with"):
        convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path, "--options", "datasets.toy.use_nonverbal_text=True")
    (section,) = read_config(tmp_path / "run" / pth.stem).datasets.values()
    assert section.captioned and Modality.AU not in section.layout.needed


def test_video_steps_are_those_that_the_pre_fusion_reads(cfg_path):
    frames = "datasets.toy.face_or_frame=multiframe_audio_frame_text"
    counts = "datasets.toy.frame_n_frms=3"
    assert video_steps(load_config(cfg_path, [counts])) == 8  # faces
    assert video_steps(load_config(cfg_path, [frames, counts])) == 3
    peak = "datasets.toy.frame_sampling=emotion_peak"
    assert video_steps(load_config(cfg_path, [frames, counts, peak])) == 8


def test_what_is_asked_for_must_be_there(tmp_path, cfg_path, pth):
    with pytest.raises(ValueError, match="--cfg-path: expected the YAML"):
        convert(pth, tmp_path / "run")
    with pytest.raises(ValueError, match="expected a checkpoint folder"):
        convert(tmp_path, tmp_path / "out.pth")
    with pytest.raises(ValueError, match=r"nothere\.pth: no such file; expected a checkpoint"):
        convert(tmp_path / "nothere.pth", tmp_path / "run", "--cfg-path", cfg_path)


def test_a_model_trained_on_goes_back_without_what_was_kept(tmp_path, cfg_path, pth):
    convert(pth, tmp_path / "run", "--cfg-path", cfg_path)
    folder = tmp_path / "run" / pth.stem
    (folder / "reference.pt").unlink()  # our training keeps no such file
    convert(folder, tmp_path / "back.pth")
    back, known = (torch.load(path, weights_only=True) for path in (tmp_path / "back.pth", pth))
    assert back["epoch"] == 7
    rows = back["model"].pop("multi_position_embedding.weight")
    assert torch.equal(rows[:16], known["model"]["multi_position_embedding.weight"][:16])
    assert_same(back["model"], {key: known["model"][key] for key in back["model"]})
    shutil.rmtree(tmp_path / "run")
    convert(tmp_path / "back.pth", tmp_path / "run", "--cfg-path", cfg_path)  # and here again
