import json
import zlib

import numpy as np
import pytest
import torch

from affect.config import ModelConfig
from affect.models.fusion import POSITIONS, AttentionPreFusion, Branch, FeatureNorm, QFormerPreFusion

SMALL = ModelConfig(qformer_hidden_size=16, qformer_heads=2, qformer_intermediate_size=32)


@pytest.mark.parametrize("fusion_type", ["qformer", "attention", "mean"])
def test_padding_does_not_change_a_branch(fusion_type):
    torch.manual_seed(0)
    branch = Branch("au", fusion_type, 6, 3, 10, SMALL).eval()
    short = torch.randn(1, 4, 6)
    padded = torch.cat([short, torch.full((1, 3, 6), 99.0)], dim=1)
    mask = torch.arange(7)[None] < 4
    alone = branch(short, torch.ones(1, 4, dtype=torch.bool))
    assert alone.shape == (1, 3, 10)
    torch.testing.assert_close(branch(padded, mask), alone)


def streams(batch=2):
    torch.manual_seed(1)
    features = {"video": torch.randn(batch, 8, 6), "audio": torch.randn(batch, 8, 5), "au": torch.randn(batch, 3, 4)}
    masks = {kind: torch.ones(x.shape[:2], dtype=torch.bool) for kind, x in features.items()}
    return features, masks


def test_pre_fusion_ignores_what_is_masked_out():
    fusion = QFormerPreFusion({"video": 6, "audio": 5, "au": 4}, 4, 10, SMALL).eval()
    features, masks = streams()
    masks["audio"][0] = False
    masks["au"][:, 2:] = False
    before = fusion(features, masks)
    features["audio"][0] += 50
    features["au"][:, 2:] -= 50
    torch.testing.assert_close(fusion(features, masks), before)
    features["video"] += 1
    assert not torch.allclose(fusion(features, masks), before)


def test_pre_fusion_tells_streams_and_positions_apart():
    fusion = QFormerPreFusion({"video": 6, "audio": 6}, 4, 10, SMALL).eval()
    for weight in fusion.parameters():
        weight.data *= 10  # fresh weights are so small that what they read hardly shows
    features, masks = streams()
    features = {"video": features["video"], "audio": features["video"].roll(1, 0)}
    masks = {kind: masks[kind] for kind in features}
    one_way = fusion(features, masks)
    assert not torch.allclose(fusion({k: x.flip(1) for k, x in features.items()}, masks), one_way, atol=1e-4)


def test_attention_maps_are_distributions_over_the_streams_that_are_there():
    fusion = QFormerPreFusion({"video": 6, "audio": 5, "au": 4}, 4, 10, SMALL).eval()
    features, masks = streams()
    masks["audio"][0] = False
    maps = fusion.attention_maps(features, masks)
    assert maps["video"].shape == (2, 2, 2, 4, 8)  # layers, batch, heads, queries, steps
    torch.testing.assert_close(sum(m.sum(-1) for m in maps.values()), torch.ones(2, 2, 2, 4))
    assert maps["audio"][:, 0].max() < 1e-6


def test_long_sequences_share_positions():
    branch = Branch("audio", "qformer", 6, 1, 10, SMALL).eval()
    long = torch.randn(1, 3 * POSITIONS["audio"], 6)
    assert branch(long, torch.ones(long.shape[:2], dtype=torch.bool)).isfinite().all()


def test_feature_norm_standardises_and_clamps():
    norm = FeatureNorm(2)
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    norm.fit(rows)
    out = norm(rows[None])
    torch.testing.assert_close(out[0, :, 0].mean(), torch.tensor(0.0))
    assert (out[0, :, 1] == 0).all()  # a constant column
    assert norm(torch.full((1, 1, 2), 1e6)).max() == FeatureNorm.LIMIT


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


@pytest.mark.parametrize("name", ["attention_paper", "mean"])
def test_simple_fusions_give_the_reference_numbers(shared, name):
    """Golden cases of the fusions without a Q-Former: branches and two-stream pre-fusion, within 1e-5."""
    meta = json.loads((shared / "goldens/fusion/meta.json").read_text())[name]
    golden = np.load(shared / f"goldens/fusion/small_{name}.npz")
    state = {key: torch.from_numpy(golden[f"state/{key}"]) for key in meta["state_keys"]}
    heads = {"video": "affectgpt_proj", "audio": "audio_llama_proj", "au": "au_llama_proj"}
    dims = {"video": meta["visual_dim"], "audio": meta["acoustic_dim"], "au": meta["au_dim"]}
    checked = 0
    for case in meta["cases"]:
        kind = case["case"].split("/")[1].split("_")[0]
        inputs = {key: hashed(n, tuple(case["in_shapes"][key]), 1) for key, n in case["in_names"].items()}
        expected = torch.from_numpy(golden[f"{case['case']}/llm"])
        if kind == "multi":
            fusion = AttentionPreFusion({k: dims[k] for k in ("video", "audio")}, meta["query_tokens"]["multi"], 40)
            keys = {"mix": "attention_mlp", "score": "fc_att", "proj": "multi_llama_proj"}
            keys |= {"projections.video": "multi_video_embs", "projections.audio": "multi_audio_embs"}
            load(fusion, keys, state)
            masks = {k: torch.ones(x.shape[:2], dtype=torch.bool) for k, x in inputs.items()}
            torch.testing.assert_close(fusion(inputs, masks), expected, atol=1e-5, rtol=1e-5)
        elif kind in heads and case["path"] == "preextracted":
            branch = Branch(kind, meta["fusion_types"][kind], dims[kind], meta["query_tokens"][kind], 40, SMALL)
            load(branch, {"proj": heads[kind], "score": f"{kind}_attention_mlp"}, state)
            x = inputs["x"] if inputs["x"].ndim == 3 else inputs["x"].unsqueeze(1)
            out = branch(x, torch.ones(x.shape[:2], dtype=torch.bool))
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        else:
            continue
        checked += 1
    assert checked >= 7


def load(module, keys, state):
    names = dict(module.named_parameters())
    module.load_state_dict({n: state[f"{keys[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}"] for n in names})
