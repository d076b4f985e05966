import pytest
import torch

from affect.core.device import half_precision, model_precision, pick_device


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    gpus(monkeypatch, 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    gpus(monkeypatch, 0)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cpu")


@pytest.mark.parametrize(("count", "there"), [(2, "cuda:0 to cuda:1"), (0, "no GPU")])
def test_an_index_that_does_not_exist_is_refused_with_what_is_there(monkeypatch, count, there):
    gpus(monkeypatch, count)
    with pytest.raises(ValueError, match=f"run.device: cuda:5 does not exist, this machine has {there}"):
        pick_device("cuda:5")


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:", "auto:0", ""])
def test_other_words_are_refused(name):
    with pytest.raises(ValueError, match=r"inference\.device: expected auto, cpu, cuda or cuda:<index>"):
        pick_device(name, "inference.device")


@pytest.mark.parametrize("emulated", [True, False])
def test_language_models_answer_in_bfloat16_where_a_card_has_it(monkeypatch, emulated):
    supported = lambda including_emulation=True: including_emulation or not emulated  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert half_precision() == (torch.float16 if emulated else torch.bfloat16)
    assert model_precision("cuda:0") == (torch.float32 if emulated else torch.bfloat16)
    assert model_precision("cpu") == torch.float32
