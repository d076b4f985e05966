"""The reference's numbers, through our modules and the map between the two sets of names."""

import json
import zlib

import numpy as np
import pytest
import torch

from affect.core.layouts import Layout
from affect.core.schema import Modality
from affect.data.config import ModelConfig
from affect.models.affectgpt import fusion_parts
from affect.tasks.reference_checkpoint import fusion_from_reference, fusion_shapes, fusion_to_reference

FILES = {"qformer": "small_qformer", "attention_paper": "small_attention_paper", "mean": "small_mean"}
STREAM = {"video": Modality.FACE, "audio": Modality.AUDIO, "au": Modality.AU, "image": Modality.IMAGE}


def hashed(name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    """Numbers that the goldens were made from: a splitmix64 stream seeded by the name."""
    with np.errstate(over="ignore"):
        z = np.uint64(zlib.crc32(name.encode()) << 32) + np.arange(np.prod(shape), dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) / 2**24
    return torch.from_numpy(((2 * unit - 1) * scale).astype(np.float32).reshape(shape))


def config_of(meta: dict, **more) -> ModelConfig:
    """The model section that says what a family of goldens was made with."""
    bert = meta["bert"]
    return ModelConfig(
        **{f"{kind}_fusion_type": fusion for kind, fusion in meta["fusion_types"].items()},
        **{f"num_{kind}_query_token": count for kind, count in meta["query_tokens"].items()},
        qformer_hidden_size=bert["hidden_size"],
        qformer_layers=bert["num_hidden_layers"],
        qformer_heads=bert["num_attention_heads"],
        qformer_intermediate_size=bert["intermediate_size"],
        preextracted_visual_dim=meta["visual_dim"],
        preextracted_acoustic_dim=meta["acoustic_dim"],
        preextracted_au_dim=meta["au_dim"],
        **more,
    )


class Case:
    """One golden case: the module that answers it, built and loaded as the program would."""

    def __init__(self, shared, family: str, meta: dict, case: dict) -> None:
        golden = np.load(shared / f"goldens/fusion/{FILES[family]}.npz")
        self.state = {key: torch.from_numpy(golden[f"state/{key}"]) for key in meta["state_keys"]}
        self.expected = torch.from_numpy(golden[f"{case['case']}/llm"])
        self.input_grads = {key: torch.from_numpy(golden[f"{case['case']}/grad_in_{key}"]) for key in case["in_names"]}
        self.inputs = {key: hashed(n, tuple(case["in_shapes"][key]), 1) for key, n in case["in_names"].items()}
        for x in self.inputs.values():
            x.requires_grad_(True)
        self.kind = case["case"].split("/")[1].split("_")[0]
        config = config_of(meta, score_single_picture=case["path"] == "realtime")
        llm_dim = meta["llm_dim"]
        if self.kind == "multi":
            layout = Layout(fused=(Modality.FACE, Modality.AUDIO))
            self.video_steps = case["in_shapes"]["video"][1]
        else:
            layout, self.video_steps = Layout(branches=(STREAM[self.kind],)), 8
        shapes = fusion_shapes(config, [layout], llm_dim)
        parts = fusion_parts(config, [layout], llm_dim)
        self.prefix = "fusion." if self.kind == "multi" else f"branches.{self.kind}."
        self.module = parts.get_submodule(self.prefix.rstrip("."))
        weights = fusion_from_reference(self.state, shapes, self.video_steps)
        self.module.load_state_dict({name.removeprefix(self.prefix): weight for name, weight in weights.items()})
        self.module.eval()

    def tokens(self) -> torch.Tensor:
        # as the store and the collator would hand them over: a lone vector is one row
        features = {key: x.unsqueeze(1) if x.ndim == 2 else x for key, x in self.inputs.items()}
        read = {key: (x, torch.ones(x.shape[:2], dtype=torch.bool)) for key, x in features.items()}
        return self.module(read) if self.kind == "multi" else self.module(*read["x"])

    def reference_gradients(self) -> dict[str, torch.Tensor]:
        grads = {f"{self.prefix}{name}": weight.grad for name, weight in self.module.named_parameters()}
        for name, grad in grads.items():
            if ".stream_marks." in name:  # the reference has none, so they have no part in its positions
                grads[name] = torch.zeros_like(grad)
        return fusion_to_reference({k: g for k, g in grads.items() if g is not None}, self.video_steps)


@pytest.mark.parametrize("family", FILES)
def test_every_fusion_gives_the_reference_numbers_and_gradients(shared, family):
    meta = json.loads((shared / "goldens/fusion/meta.json").read_text())[family]
    for golden in meta["cases"]:
        case = Case(shared, family, meta, golden)
        tokens = case.tokens()
        torch.testing.assert_close(tokens, case.expected, atol=1e-5, rtol=1e-5, msg=lambda m, g=golden: f"{g}: {m}")
        (tokens * hashed(golden["grad_weight_name"], tuple(golden["llm_shape"]), 1)).sum().backward()
        for key, x in case.inputs.items():
            torch.testing.assert_close(x.grad, case.input_grads[key], atol=1e-5, rtol=1e-5)
        norms = {key: grad.norm().item() for key, grad in case.reference_gradients().items()}
        assert norms == pytest.approx(dict.fromkeys(norms, 0.0) | golden["param_grad_norms"], rel=1e-5, abs=1e-5)


FUSED = Layout(fused=(Modality.FACE, Modality.AUDIO), branches=(Modality.AUDIO, Modality.FACE, Modality.AU))
SMALL = ModelConfig(
    preextracted_visual_dim=6,
    preextracted_acoustic_dim=5,
    preextracted_au_dim=4,
    qformer_hidden_size=16,
    qformer_heads=2,
    qformer_intermediate_size=32,
    fuse_au=False,
)


def random_fusion(config=SMALL, layout=FUSED) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = fusion_shapes(config, [layout], 10)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_marks_of_streams_become_part_of_the_reference_s_positions():
    ours = random_fusion()
    shapes = {name: weight.shape for name, weight in ours.items()}
    back = fusion_from_reference(fusion_to_reference(ours, 8), shapes, 8)
    assert not any(back[name].any() for name in shapes if "stream_marks" in name)
    generator = torch.Generator().manual_seed(1)
    features = {kind: torch.randn(2, 8, dim, generator=generator) for kind, dim in (("video", 6), ("audio", 5))}
    read = {kind: (x, torch.ones(2, 8, dtype=torch.bool)) for kind, x in features.items()}
    tokens = []
    for weights in (ours, back):
        module = fusion_parts(SMALL, [FUSED], 10)["fusion"].eval()
        module.load_state_dict({n.removeprefix("fusion."): w for n, w in weights.items() if n.startswith("fusion.")})
        tokens.append(module(read))
    torch.testing.assert_close(tokens[0], tokens[1])


def test_every_weight_has_a_name_of_its_own_in_the_reference():
    ours = random_fusion()
    marks = sum("stream_marks" in name for name in ours)
    assert len(fusion_to_reference(ours, 8)) == len(ours) - marks - 1  # two position tables become one


def test_what_the_reference_cannot_hold_is_refused():
    config = SMALL.model_copy(update={"fuse_au": True})
    layout = Layout(fused=(Modality.FACE, Modality.AUDIO, Modality.AU))
    with pytest.raises(ValueError, match=r"fusion\.projections\.au.*the reference has nothing like it"):
        fusion_to_reference(random_fusion(config, layout), 8)
    with pytest.raises(ValueError, match=r"norms\.face\.deviation: the reference has nothing like it"):
        fusion_to_reference({"norms.face.deviation": torch.ones(3)}, 8)


def test_weights_that_do_not_fit_are_named():
    ours = random_fusion()
    reference = fusion_to_reference(ours, 8)
    shapes = {name: weight.shape for name, weight in ours.items()}
    reference["affectgpt_proj.weight"] = torch.zeros(10, 3)
    with pytest.raises(ValueError, match=r"config: affectgpt_proj\.weight is \[10, 3\], expected \[10, 16\]$"):
        fusion_from_reference(reference, shapes, 8)
    del reference["audio_query_tokens"]
    with pytest.raises(ValueError, match=r"config: audio_query_tokens is missing and 1 more$"):
        fusion_from_reference(reference, shapes, 8)


def test_more_video_steps_than_positions_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 32"):
        fusion_to_reference(random_fusion(), 40)
