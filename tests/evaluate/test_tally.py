import numpy as np
import pytest

from affect.evaluate.tally import Tally, compare, interval, replicates


def mean_tally(values):
    counts = np.stack([values, np.ones(len(values))], axis=1).astype(float)
    return Tally([f"c{i}" for i in range(len(values))], counts, lambda sums: sums[..., 0] / sums[..., 1])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_interval_of_a_mean_is_that_of_the_textbook(rng):
    values = rng.normal(size=400)
    low, high = interval(replicates([mean_tally(values)], 4000, 1))
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_mean_of_several_sets_is_surer_than_each(rng):
    sets = [mean_tally(rng.normal(size=100)) for _ in range(9)]
    spread = np.ptp(interval(replicates(sets, 1000, 1)))
    assert all(spread < np.ptp(interval(replicates([each], 1000, 1))) for each in sets)


def test_the_same_seed_gives_the_same_interval(rng):
    tally = mean_tally(rng.normal(size=50))
    assert interval(replicates([tally], 300, 7)) == interval(replicates([tally], 300, 7))
    assert interval(replicates([tally], 300, 7)) != interval(replicates([tally], 300, 8))


def test_a_system_does_not_differ_from_itself(rng):
    tally = mean_tally(rng.random(200))
    compared = compare([tally], [tally], 500, 0)
    assert (compared.low, compared.high, compared.p) == (0, 0, 1)


def test_pairing_finds_a_small_difference_that_all_clips_share(rng):
    values = rng.normal(size=200)
    compared = compare([mean_tally(values + 0.05 + 0.1 * rng.normal(size=200))], [mean_tally(values)], 1000, 0)
    assert compared.p < 0.01 and compared.low > 0


def test_systems_that_differ_by_chance_are_rarely_called_different(rng):
    small = [compare([mean_tally(a)], [mean_tally(b)], 200, 0).p < 0.05 for a, b in rng.random(size=(200, 2, 40))]
    assert 0.01 < np.mean(small) < 0.11


def test_several_sets_are_compared_by_their_mean(rng):
    better = [mean_tally(rng.random(100) + 0.2) for _ in range(3)]
    worse = [mean_tally(rng.random(100)) for _ in range(3)]
    compared = compare(better, worse, 500, 0)
    assert compared.first == pytest.approx(np.mean([each.value for each in better]))
    assert compared.p < 0.01 and compared.low < compared.first - compared.second < compared.high


def test_other_clips_are_no_comparison(rng):
    first, second = mean_tally(rng.random(5)), mean_tally(rng.random(6))
    with pytest.raises(ValueError, match="same clips"):
        compare([first], [second], 10, 0)


def test_a_score_of_nothing_has_no_interval_and_no_p():
    empty = mean_tally(np.zeros(0))
    with np.errstate(invalid="ignore"):
        assert np.isnan(interval(replicates([empty], 10, 0))).all()
        assert np.isnan(compare([empty], [empty], 10, 0).p)
