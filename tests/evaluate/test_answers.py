import numpy as np
import pytest

from affect.evaluate.answers import conclusion, find_labels, is_negated, split_labels
from affect.evaluate.errors import LabelError

LABELS = ["happy", "sad", "angry", "calm"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The person is happy and calm.", ["happy", "calm"]),
        ("Not angry, rather SAD.", ["sad"]),
        ("She is not at all happy; she is sad.", ["sad"]),
        ("He isn't really angry but sad", ["sad"]),
        ("not only happy but calm", ["happy", "calm"]),
        ("neither happy nor sad", []),
        ("there are no clear signs of angry faces", []),
        ("She does not smile and is sad", ["sad"]),
        ("unhappy sadness", []),
        ("", []),
    ],
)
def test_labels_are_whole_words_that_are_not_negated(text, found):
    assert find_labels(text, LABELS) == found


def test_reasoning_is_judged_by_where_it_ends():
    assert conclusion("A happy tune plays. Still, the person feels sad.", LABELS) == "sad"
    assert conclusion("Nothing to be seen.", LABELS) is None


def test_a_negation_far_before_a_word_does_not_reach_it():
    text = "not " + "so " * 40 + "happy"
    assert not is_negated(text, text.index("happy"))


def test_arrays_are_lists_of_labels():
    assert split_labels(np.array(["happy", "sad"])) == ["happy", "sad"]


@pytest.mark.parametrize("answer", [3, 0.5, True, ["happy", 3], {"happy": 1}])
def test_what_is_no_list_of_words_is_refused_and_shown(answer):
    with pytest.raises(LabelError, match=r"expected labels such as \"\[happy, sad\]\"") as error:
        split_labels(answer)
    assert repr(answer) in str(error.value)
