"""One file holds a network and all that predicting needs; a broken one says what is wrong."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from affect.expressions.config import ImageModelConfig, input_spec
from affect.expressions.models import build_model, load_model
from affect.expressions.network_file import ModelCard, find_model, read_card, save_model

CLASSES = ("anger", "joy", "none")


@pytest.fixture(scope="module")
def card() -> ModelCard:
    model = ImageModelConfig(arch="compact", width=0.25)
    return ModelCard(model, CLASSES, input_spec(model, None, None), data="toy", epoch=3, scores={"acc": 0.5})


@pytest.fixture
def saved(card, tmp_path):
    torch.manual_seed(0)
    model = build_model(card.model, len(CLASSES)).eval()
    save_model(tmp_path / "best.safetensors", model.state_dict(), card)
    return model, tmp_path / "best.safetensors"


def test_a_network_comes_back_with_its_card_and_answers(saved, card):
    model, path = saved
    again, read = load_model(path)
    assert read == card
    assert not again.training
    images = torch.randn(2, 1, 48, 48)
    torch.testing.assert_close(again(images), model(images))


def test_a_run_folder_gives_its_best_network(saved):
    _, path = saved
    path.with_name("last.safetensors").write_bytes(b"")
    assert find_model(path.parent) == path
    assert read_card(path.parent).classes == CLASSES


def test_weights_are_not_fetched_to_load_a_network(saved, card, tmp_path):
    other = replace(card, model=card.model.model_copy(update={"weights": "/nowhere/at_all.pth"}))
    save_model(tmp_path / "x.safetensors", saved[0].state_dict(), other)
    assert load_model(tmp_path / "x.safetensors")[1].model.weights == "/nowhere/at_all.pth"


@pytest.mark.parametrize("share", [0, 0.001, 0.33, 0.99])
def test_a_file_that_was_cut_off_is_refused_in_one_sentence(saved, share):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="expected a whole network") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_foreign_files_are_refused(saved, tmp_path):
    _, path = saved
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="without that mark"):
        read_card(foreign)
    with pytest.raises(ValueError, match="no file"):
        read_card(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="found neither"):
        find_model(tmp_path / "..")
    save_file(load_file(path), foreign, {"format": "affect-fer-1", "card": json.dumps({"classes": []})})
    with pytest.raises(ValueError, match=r"expected a whole network.*Field required"):
        read_card(foreign)


def test_weights_of_another_shape_are_refused(saved, card, tmp_path):
    path = tmp_path / "four.safetensors"
    save_model(path, saved[0].state_dict(), replace(card, classes=(*CLASSES, "fear")))
    with pytest.raises(ValueError, match=r"compact as its header describes it: head.weight is \[3, .*expected \[4, "):
        load_model(path)
