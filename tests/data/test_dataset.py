import numpy as np
import pytest

from affect.data.dataset import TrainingSamples, open_datasets, query_tokens
from affect.data.prompts import load_prompts
from affect.data.sampling import Draw
from affect.schema import Modality
from affect.store import FeatureError


def samples(config, seed=0):
    return TrainingSamples(open_datasets(config, "train"), load_prompts(), query_tokens(config.model), seed)


def test_a_sample_is_a_function_of_seed_cycle_and_clip(tiny_world):
    first, again = (samples(tiny_world)[Draw(2, 5)] for _ in range(2))
    assert (first.prompt, first.answer) == (again.prompt, again.answer)
    texts = {samples(tiny_world)[Draw(2, cycle)].prompt for cycle in range(20)}
    assert len(texts) > 1  # both questions are asked and streams are dropped


def test_dropout_never_empties_a_sample(tiny_world):
    tiny_world.datasets["toy"].modality_dropout = 0.99
    data = samples(tiny_world)
    for cycle in range(20):
        assert sum(len(array) > 0 for array in data[Draw(0, cycle)].features.values()) >= 1


def test_a_clip_without_a_face_keeps_its_sound(tiny_world):
    features = open_datasets(tiny_world, "train")[0].features(3)
    assert len(features[Modality.FACE]) == 0
    assert features[Modality.AUDIO].shape == (8, 10)


def test_missing_features_are_found_before_training(tiny_world):
    dataset = open_datasets(tiny_world, "train")[0]
    for name in ("c1", "c5"):
        dataset.store.path(dataset.specs[Modality.AUDIO], name).unlink()
    with pytest.raises(FeatureError, match=r"no audio features of clip 'c1' and of 1 more clips.*extract_features"):
        open_datasets(tiny_world, "train")


def test_a_bad_array_is_never_replaced_by_another_clip(tiny_world):
    data = samples(tiny_world)
    store, specs = data.datasets[0].store, data.datasets[0].specs
    np.save(store.path(specs[Modality.FACE], "c2"), np.full((8, 12), np.inf, np.float32))
    with pytest.raises(FeatureError, match=r"c2\.npy.*finite"):
        data[Draw(2, 0)]
