import weakref

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from affect.data.config import ModelConfig
from affect.models.llm import answer_loss, decoder, load_llm, lora_config

TOKENS, LABELLED = 290, 100
PLACES = torch.arange(TOKENS - LABELLED - 1, TOKENS - 1)


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            storage = leaf.untyped_storage() if torch.is_tensor(leaf) else None
            if storage is not None and storage._cdata not in before | self.alive.keys():
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return made


def inputs(width: int, vocabulary: int):
    generator = torch.Generator().manual_seed(0)
    embeddings = (torch.randn(1, TOKENS, width, generator=generator) / 50).requires_grad_()
    labels = torch.full((1, TOKENS), -100)
    labels[:, -LABELLED:] = torch.randint(vocabulary, (1, LABELLED), generator=generator)
    return embeddings, torch.ones(1, TOKENS, dtype=torch.long), labels


def gradients(llm) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in llm.named_parameters() if weight.grad is not None}


def test_a_wide_vocabulary_is_paid_for_at_labelled_positions_only():
    """Geometry of the tiny preset with the vocabulary of Qwen2.5: at most 0.6 of the memory that all logits take."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    llm = get_peft_model(Qwen2ForCausalLM(config), lora_config(ModelConfig())).train()
    embeddings, mask, labels = inputs(256, config.vocab_size)
    with Memory() as ours:
        answer_loss(llm, embeddings, mask, labels, PLACES).backward()
    with Memory() as all_logits:
        llm(inputs_embeds=embeddings, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    assert ours.peak <= 0.6 * all_logits.peak


def test_checkpointing_changes_memory_and_not_gradients(tiny_llm):
    found, peaks = [], []
    embeddings, mask, labels = inputs(32, 300)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        llm = load_llm(ModelConfig(llama_model=str(tiny_llm)), gradient_checkpointing=checkpointing).train()
        torch.manual_seed(1)  # the same dropout
        with Memory() as memory:
            answer_loss(llm, embeddings, mask, labels, PLACES).backward()
        found.append(gradients(llm))
        peaks.append(memory.peak)
    torch.testing.assert_close(found[0], found[1])
    assert peaks[1] < 0.8 * peaks[0]


def test_a_compiled_decoder_gives_the_same_gradients_under_the_same_names(tiny_llm):
    llm = load_llm(ModelConfig(llama_model=str(tiny_llm))).eval()
    embeddings, mask, labels = inputs(32, 300)
    answer_loss(llm, embeddings, mask, labels, PLACES).backward()
    expected, names = gradients(llm), list(llm.state_dict())
    llm.zero_grad()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    decoder(llm).compile(backend=backend, dynamic=True)
    answer_loss(llm, embeddings, mask, labels, PLACES).backward()
    assert graphs
    torch.testing.assert_close(gradients(llm), expected)
    assert list(llm.state_dict()) == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_without_a_gpu_are_refused(tiny_llm):
    with pytest.raises(ValueError, match=r"model\.load_in_4bit needs .*a CUDA GPU, which is not here; set it to False"):
        load_llm(ModelConfig(llama_model=str(tiny_llm), load_in_4bit=True))
