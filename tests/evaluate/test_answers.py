import pytest

from affect.evaluate.answers import conclusion, find_labels

LABELS = ["happy", "sad", "angry", "calm"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The person is happy and calm.", ["happy", "calm"]),
        ("Not angry, rather SAD.", ["sad"]),
        ("She is not at all happy; she is sad.", ["sad"]),
        ("unhappy sadness", []),
        ("", []),
    ],
)
def test_labels_are_whole_words_that_are_not_negated(text, found):
    assert find_labels(text, LABELS) == found


def test_reasoning_is_judged_by_where_it_ends():
    assert conclusion("A happy tune plays. Still, the person feels sad.", LABELS) == "sad"
    assert conclusion("Nothing to be seen.", LABELS) is None
