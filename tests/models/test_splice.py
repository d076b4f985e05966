import pytest
import torch

from affect.core.schema import Modality
from affect.models.splice import splice

FACE, AUDIO = Modality.FACE, Modality.AUDIO


def test_tokens_take_their_places_in_order():
    tokens = {FACE: torch.arange(8.0).view(2, 2, 2) + 1, AUDIO: torch.full((1, 1, 2), 9.0)}
    places = {FACE: torch.tensor([[1, 2], [8, 10]]), AUDIO: torch.tensor([[4]])}
    out = splice(torch.zeros(3, 4, 2), tokens, places)
    assert out[0, 1:3].tolist() == [[1, 2], [3, 4]]
    assert out[2, [0, 2]].tolist() == [[5, 6], [7, 8]]
    assert out[1].tolist() == [[9, 9], [0, 0], [0, 0], [0, 0]]
    assert out[0, 0].abs().sum() == 0


def test_a_prompt_without_placeholders_stays_as_it_is():
    embeddings = torch.ones(1, 3, 2)
    assert torch.equal(splice(embeddings, {}, {}), embeddings)


def test_a_wrong_number_of_placeholders_is_refused():
    with pytest.raises(ValueError, match=r"<FaceHere>: expected 2 placeholders in a prompt, found 1; prompt file"):
        splice(torch.zeros(1, 3, 2), {FACE: torch.ones(1, 2, 2)}, {FACE: torch.tensor([[0]])})
