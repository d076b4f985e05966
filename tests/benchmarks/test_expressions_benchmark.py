"""The benchmark of expression networks gives a row for every model, batch size and way; no test looks at speeds."""

import argparse
import json

import pytest

from benchmarks import __main__ as benchmark
from benchmarks import expressions as benchmark_fer

TINY = ["--width", "0.125", "--seconds", "0", "--threads", "1", "--device", "cpu", "--img_size", "32"]
PAIR = "ir50_vit:cls_only/ir50_vit:baseline"


@pytest.fixture
def figures(capsys):
    def run(*arguments):
        assert benchmark.main(["fer", *TINY, *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_every_way_at_every_batch_size_has_a_row(figures):
    found = figures("--models", "compact", "--batch_sizes", "1", "3", "--ways", "eager", "channels_last", "--pairs")
    (model,) = found["models"]
    rows = [(row["batch_size"], row["way"]) for row in model["rows"]]
    assert rows == [(1, "eager"), (1, "channels_last"), (3, "eager"), (3, "channels_last")]
    for row in model["rows"]:
        assert {"images_per_second", "step_ms", "peak_mb", "logits_off"} <= row.keys()
        assert row["steps"] >= benchmark_fer.LEAST_STEPS
        assert row["logits_off"] < 1e-4 < model["largest_logit"]
    assert [row["logits_off"] for row in model["rows"] if row["way"] == "eager"] == [0, 0]
    assert (found["mode"], found["pairs"]) == ("inference", [])


def test_training_steps_are_measured_too(figures):
    found = figures("--models", "compact", "--batch_sizes", "2", "--ways", "channels_last", "--pairs", "--train")
    (row,) = found["models"][0]["rows"]
    assert (found["mode"], row["batch_size"], row["way"]) == ("train", 2, "channels_last")


def test_the_two_models_of_a_pair_take_turns(figures, monkeypatch):
    order = []

    def noted(runner):
        order.append(runner.model.blocks[0].kind)
        runner.seconds.append(1.0 if order[-1] == "cls_only" else 1.5)

    monkeypatch.setattr(benchmark_fer.Runner, "timed_step", noted)
    (pair,) = figures("--models", "--pairs", PAIR, "--pair_batch_size", "2")["pairs"]
    assert order == ["cls_only", "baseline"] * benchmark_fer.LEAST_STEPS
    assert (pair["pair"], pair["batch_size"], pair["turns"]) == (PAIR, 2, benchmark_fer.LEAST_STEPS)
    assert pair["ratio"] == 1.5
    assert pair["ratio_of_single_turns"] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poster_v2", {"arch": "poster_v2"}),
        ("timm:vit_tiny_patch16_224", {"arch": "timm", "backbone": "vit_tiny_patch16_224"}),
        (
            "ir50_vit:stage4:expand:qk_norm",
            {"arch": "ir50_vit", "stage": "stage4", "block": "expand", "qk_norm": True},
        ),
    ],
)
def test_models_are_named_by_architecture_and_options(text, expected):
    config = benchmark_fer.parse_model(text, argparse.Namespace(width=1.0, img_size=None))
    assert expected.items() <= config.model_dump().items()


@pytest.mark.parametrize("text", ["vgg", "poster_v2:stage3", "ir50_vit:stage5", "timm_resnet18"])
def test_an_unknown_model_is_explained(text):
    with pytest.raises(ValueError, match=f"model '{text}': expected poster_v2, compact"):
        benchmark_fer.parse_model(text, argparse.Namespace(width=1.0, img_size=None))


def test_a_pair_is_two_models(figures):
    with pytest.raises(ValueError, match="expected two models with a / between them"):
        figures("--pairs", "compact")


@pytest.mark.parametrize("flag", ["--batch_sizes", "--pair_batch_size"])
def test_a_batch_of_nothing_is_refused(figures, flag):
    with pytest.raises(ValueError, match="expected numbers above 0"):
        figures(flag, "0")
