import pytest
from sklearn.metrics import accuracy_score, f1_score

from affect.evaluate.errors import LabelError
from affect.evaluate.sentiment import sentiment_scores


def test_weighted_f1_is_that_of_the_usual_library():
    truth = {f"c{i}": (i % 7) - 3.0 for i in range(60)}
    answers = {name: ("positive", "negative", "neutral")[i % 3] for i, name in enumerate(truth)}
    names = [name for name, valence in truth.items() if valence]
    true, found = [truth[name] > 0 for name in names], [answers[name] == "positive" for name in names]
    scores = sentiment_scores(truth, answers)
    assert scores.values["waf"] == pytest.approx(f1_score(true, found, average="weighted"), abs=1e-12)
    assert scores.values["acc"] == pytest.approx(accuracy_score(true, found), abs=1e-12)
    assert scores.n == len(names) < len(truth)


def test_a_valence_of_nan_stays_in_and_is_not_positive():
    scores = sentiment_scores({"a": float("nan"), "b": 1.0}, {"a": "positive", "b": "positive"})
    assert (scores.values["acc"], scores.n) == (0.5, 2)


@pytest.mark.parametrize("valence", ["0.4", None, True, [1]])
def test_a_valence_that_is_no_number_is_refused_by_name(valence):
    with pytest.raises(LabelError, match="clip 'x' has the valence"):
        sentiment_scores({"x": valence}, {"x": "positive"})
