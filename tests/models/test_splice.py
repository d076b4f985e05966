import pytest
import torch

from affect.models.splice import splice


def test_tokens_take_the_places_of_their_rows_in_order():
    ids = torch.tensor([[5, 9, 9, 1], [1, 1, 1, 1], [9, 5, 9, 5]])
    rows = torch.tensor([True, False, True])
    tokens = torch.arange(8.0).view(2, 2, 2) + 1
    out = splice(torch.zeros(3, 4, 2), ids, 9, tokens, rows)
    assert out[0, 1:3].tolist() == [[1, 2], [3, 4]]
    assert out[2, [0, 2]].tolist() == [[5, 6], [7, 8]]
    assert out[1].abs().sum() == 0
    assert out[0, 0].abs().sum() == 0


def test_a_wrong_number_of_placeholders_is_refused():
    with pytest.raises(ValueError, match=r"expected .* placeholders"):
        splice(torch.zeros(1, 3, 2), torch.tensor([[9, 1, 1]]), 9, torch.ones(1, 2, 2), torch.tensor([True]))
