"""The configurations that ship go through the real entry points, with tiny stand-ins for weights and data."""

from pathlib import Path

import numpy as np
import pytest

from affect.cli import answer as inference
from affect.cli import train
from affect.core.schema import STORED_MODALITIES
from affect.data.config import load_config
from affect.features.store import FeatureStore
from miniature_datasets import WRITERS

ROOT = Path(__file__).parents[1]
NARROW = ["model.qformer_hidden_size=16", "model.qformer_heads=2", "model.qformer_intermediate_size=32"]
SHORT = ["run.max_epoch=1", "run.iters_per_epoch=2", "run.warmup_steps=1", "run.num_workers=0", "run.device=cpu"]


@pytest.mark.parametrize("name", ["recommended_train_with_preextracted_au", "affectgpt_qwen2.5_7b"])
def test_a_shipped_training_configuration_trains_and_its_model_answers(name, tmp_path, tiny_llm, capsys):
    WRITERS["mercaptionplus"](tmp_path / "data")
    path = ROOT / "train_configs" / f"{name}.yaml"
    config = load_config(path)
    section = config.datasets["mercaptionplus"]
    store, rng = FeatureStore(tmp_path / "features", "mercaptionplus"), np.random.default_rng(0)
    for clip in ("a1", "a2", "a3"):
        for stream in STORED_MODALITIES:
            spec = section.spec(stream, config.model.feature_dim(stream))
            array = rng.normal(size=(8, spec.dim)).astype(np.float32)
            store.write(spec, clip, array / np.linalg.norm(array, axis=1, keepdims=True), {})
    options = [
        f"model.llama_model={tiny_llm}",
        "model.lora_r=4",
        *NARROW,
        f"datasets.mercaptionplus.data_root={tmp_path / 'data'}",
        f"datasets.mercaptionplus.preextracted_root={tmp_path / 'features'}",
        f"run.output_dir={tmp_path / 'run'}",
        *SHORT,
    ]
    assert train.main(["--cfg-path", str(path), "--options", *options]) == 0
    answers = ROOT / "eval_configs" / "affectgpt_qwen2.5_7b.yaml"
    asked = [
        f"inference.ckpt_root={tmp_path / 'run'}",
        f"inference.base_root={tmp_path / 'results'}",
        "inference.split=train",
        "inference.max_new_tokens=4",
        "inference.device=cpu",
    ]
    assert inference.main(["--cfg-path", str(answers), "--options", *asked]) == 0
    lines = next(tmp_path.rglob("*-description.jsonl")).read_text().splitlines()
    assert len(lines) == 3
