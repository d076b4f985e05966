import numpy as np
import pytest
import torch

from affect.data.collate import IGNORED, Collator, pad_features
from affect.models.llm import load_tokenizer
from affect.schema import Clip, Modality, Sample


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return load_tokenizer(str(tiny_llm))


def sample(prompt, answer, rows=3):
    return Sample(Clip(prompt, "toy"), {Modality.AU: np.ones((rows, 2), np.float32)}, prompt, answer)


def test_labels_are_on_the_answer_and_its_end_only(tokenizer):
    batch = Collator(tokenizer, 100)([sample("person", "happy"), sample("the person feels", "the lip corners")])
    for row, answer in enumerate(["happy", "the lip corners"]):
        labelled = batch.labels[row][batch.labels[row] != IGNORED]
        assert tokenizer.decode(labelled) == answer + tokenizer.eos_token
        assert torch.equal(labelled, batch.input_ids[row][batch.labels[row] != IGNORED])
    assert batch.attention_mask[0, -1] == 0  # padded on the right
    assert batch.input_ids[0, 0] == tokenizer.bos_token_id


def test_prompts_to_go_on_from_end_at_the_last_column(tokenizer):
    batch = Collator(tokenizer, 100, generation=True)([sample("person", "x"), sample("the person feels", "x")])
    assert batch.attention_mask[:, -1].tolist() == [1, 1]
    assert (batch.labels == IGNORED).all()


def test_features_are_padded_under_a_mask():
    features, masks = pad_features([sample("a", "", rows).features for rows in (0, 2, 5)])
    assert features[Modality.AU].shape == (3, 5, 2)
    assert masks[Modality.AU].sum(dim=1).tolist() == [0, 2, 5]
    assert (features[Modality.AU][~masks[Modality.AU]] == 0).all()


def test_a_prompt_that_is_too_long_names_its_clip(tokenizer):
    with pytest.raises(ValueError, match="clip 'the person feels': expected a prompt of at most 2 tokens"):
        Collator(tokenizer, 2)([sample("the person feels", "x")])
