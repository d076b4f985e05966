import matplotlib.pyplot as plt
import numpy as np

from affect.evaluate.wheel_pictures import cluster_confusion, draw_label_pictures


def ink(path):
    """Share of the pixels of a picture that are not white."""
    return float(np.mean(plt.imread(path)[..., :3].min(axis=-1) < 0.9))


def test_an_answer_that_names_the_true_cluster_counts_as_it():
    truth = [frozenset({"a"}), frozenset({"a"}), frozenset({"b"}), frozenset()]
    found = [frozenset({"a", "b"}), frozenset({"b", "c"}), frozenset(), frozenset({"a"})]
    counts = cluster_confusion(truth, found, ["a", "b", "c"])
    assert counts.tolist() == [[1, 0.5, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_label_pictures_show_clusters_bars_and_wheel(tmp_path, small_wheels):
    truth = {"a": "joy", "b": "lonely", "c": "anger", "d": "surprise"}
    answers = {"a": "[joy, anger]", "b": "[joy]", "c": "[]", "d": "[joy]"}
    paths = draw_label_pictures(tmp_path, truth, answers, small_wheels)
    assert [path.name for path in paths] == ["confusion.png", "clusters.png", "wheel.png"]
    assert all(ink(path) > 0.01 for path in paths)
