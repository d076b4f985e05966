"""What the queries of the pre-fusion read: files and pictures."""

import numpy as np
import pytest

from affect.answer.attention import AttentionWriter, check_attention, draw_attention
from affect.core.layouts import LAYOUTS
from affect.data.collate import Collator
from affect.data.config import ModelConfig
from affect.data.dataset import make_sample, open_dataset, query_tokens
from affect.data.prompts import load_prompts
from affect.models.affectgpt import build_affectgpt


@pytest.fixture
def batch_of(tiny_world):
    dataset = open_dataset("toy", tiny_world.datasets["toy"], tiny_world.model, None)

    def make(model, names):
        tokens, prompts = query_tokens(tiny_world.model), load_prompts()
        places = [i for i, clip in enumerate(dataset.clips) if clip.name in names]
        layout = dataset.config.face_or_frame
        samples = [
            make_sample(dataset.clips[i], dataset.features(i), layout, prompts, "description", tokens) for i in places
        ]
        return Collator(model.tokenizer, 1024, generation=True)(samples)

    return make


def tiny_model(config):
    layout = config.datasets["toy"].face_or_frame
    return build_affectgpt(config.model, [LAYOUTS[layout]]).eval()


def test_each_clip_has_its_own_numbers_without_padding(tiny_world, tmp_path, batch_of):
    model = tiny_model(tiny_world)
    writer = AttentionWriter(model, tmp_path / "maps", pictures=2)
    writer(batch_of(model, ["c2", "c3", "c4"]))
    shapes = {}
    for name in ("c2", "c3", "c4"):
        with np.load(tmp_path / "maps" / f"{name}.npz") as maps:
            shapes[name] = {stream: maps[stream].shape for stream in maps.files}
            total = sum(maps[stream].sum(axis=-1) for stream in maps.files)
            np.testing.assert_allclose(total, 1, atol=1e-5)
    layers, heads, queries = 2, 2, 4
    assert shapes["c2"] == {s: (layers, heads, queries, t) for s, t in (("face", 8), ("audio", 8), ("au", 5))}
    assert {stream: shape[-1] for stream, shape in shapes["c3"].items()} == {"face": 0, "audio": 8, "au": 0}
    assert {stream: shape[-1] for stream, shape in shapes["c4"].items()} == {"face": 8, "audio": 0, "au": 5}
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.png")) == ["c2.png", "c3.png"]


def test_what_has_no_queries_says_so():
    check_attention(ModelConfig(), "multiface_text")
    with pytest.raises(ValueError, match=r"found model\.multi_fusion_type attention; leave --attention out"):
        check_attention(ModelConfig(multi_fusion_type="attention"), "multiface_text")
    with pytest.raises(ValueError, match="found layout audio_text"):
        check_attention(ModelConfig(), "audio_text")


def test_clips_that_were_answered_without_it_are_counted(tiny_world, tmp_path, batch_of, caplog):
    model = tiny_model(tiny_world)
    writer = AttentionWriter(model, tmp_path)
    writer(batch_of(model, ["c2"]))
    writer.count_unseen({"c2"})
    assert not caplog.text
    writer.count_unseen({"c2", "c5", "c6"})
    assert "2 clips were answered before without it" in caplog.text


def test_the_picture_grows_with_queries_and_steps(tmp_path):
    rng = np.random.default_rng(0)
    maps = {"face": rng.random((2, 2, 3, 8)), "audio": np.zeros((2, 2, 3, 0)), "au": rng.random((2, 2, 3, 2))}
    from matplotlib.image import imread

    small = imread(draw_attention(tmp_path / "small.png", maps, "clip")).shape
    maps["audio"] = rng.random((2, 2, 3, 30))
    assert imread(draw_attention(tmp_path / "large.png", maps, "clip")).shape[1] > small[1]
