"""Which backend writes: vLLM behind the same call, with a stand-in for the module."""

import sys

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from extractors.au.agent import build_agent
from toy_agent import CLIPS, DISTINCT, FRAMES
from toy_vllm import stand_in


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in for the module; what it is given."""
    modules, given = stand_in()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return given


def test_backends_ask_and_answer_alike(chat_llm, vllm):
    agent = build_agent(chat_llm, device="cuda", backend="vllm", max_new_tokens=10)
    assert agent.describe_clips(CLIPS) == build_agent(chat_llm, max_new_tokens=10).describe_clips(CLIPS)
    ((prompts, sampling, lora),) = vllm.calls
    assert len(prompts) == DISTINCT and lora is None and vllm.engines == [{"trust_remote_code": False}]
    assert (sampling.temperature, sampling.max_tokens) == (0.0, 10)


def test_adapter_reaches_vllm_with_room_for_its_rank(chat_llm, vllm, tmp_path):
    config = LoraConfig(r=4, rank_pattern={"q_proj": 20}, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_llm), config).save_pretrained(tmp_path)
    agent = build_agent(chat_llm, tmp_path, "cuda:0", "vllm", gpu_memory_utilization=0.5, max_new_tokens=2)
    agent.describe(FRAMES)
    given = {"enable_lora": True, "max_lora_rank": 32, "gpu_memory_utilization": 0.5}
    assert vllm.engines == [given | {"trust_remote_code": False}]
    assert vllm.calls[0][2] == ("adapter", 1, str(tmp_path))
    assert str(tmp_path) in agent.made_by


def test_vllm_is_refused_what_it_cannot_do(chat_llm, vllm, tmp_path):
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ValueError, match=f"device is '{device}', but vllm takes the first GPU"):
            build_agent(chat_llm, device=device, backend="vllm")
    with pytest.raises(FileNotFoundError, match=r"AU agent: the folder .*gone does not exist"):
        build_agent(tmp_path / "gone", device="cuda", backend="vllm")
    with pytest.raises(ValueError, match=r"AU agent, adapter: .* cannot be loaded"):
        build_agent(chat_llm, tmp_path, "cuda", "vllm")


def test_absence_of_vllm_is_said_in_one_sentence(chat_llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ImportError, match=r"^AU agent: backend vllm needs .* install affect\[vllm\], or use backend hf$"
    ):
        build_agent(chat_llm, device="cuda", backend="vllm")


def test_unknown_backend_is_refused(chat_llm):
    with pytest.raises(ValueError, match="backend 'tgi' is unknown: expected hf or vllm"):
        build_agent(chat_llm, backend="tgi")
