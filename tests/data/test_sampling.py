import numpy as np
import pytest

from affect.data.sampling import StepBatches, bucketed_order, coin

LENGTHS = np.random.default_rng(0).integers(20, 400, 500)


def visits(batches):
    return [draw for batch in batches for draw in batch]


def bucketed(first, last, rank=0, world=1, batch_size=4, size=500):
    return list(StepBatches(size, batch_size, 5, first, last, rank, world, lambda cycle: LENGTHS[:size] + cycle % 2))


@pytest.mark.parametrize("lengths", [None, lambda cycle: LENGTHS[:10]])
def test_every_cycle_visits_every_clip_once_in_another_order(lengths):
    seen = visits(StepBatches(10, 3, 1, 0, 10, lengths=lengths))
    cycles = [[draw.index for draw in seen if draw.cycle == cycle] for cycle in range(3)]
    assert all(sorted(cycle) == list(range(10)) for cycle in cycles)
    assert cycles[0] != cycles[1]


def test_a_late_start_sees_what_an_uninterrupted_run_sees():
    whole = list(StepBatches(size=7, batch_size=3, seed=5, first=0, last=12))
    assert list(StepBatches(size=7, batch_size=3, seed=5, first=8, last=12)) == whole[8:]
    assert bucketed(150, 300) == bucketed(0, 300)[150:]


def test_processes_share_the_data_without_overlap():
    batches = [list(StepBatches(12, 2, 0, 0, 2, rank, world=3)) for rank in range(3)]
    assert sorted(draw.index for process in batches for draw in visits(process)) == list(range(12))


@pytest.mark.parametrize("make", [bucketed, lambda *a, **k: list(StepBatches(500, k["batch_size"], 5, *a))])
def test_two_processes_see_together_what_one_of_twice_the_batch_sees(make):
    one = make(0, 200, batch_size=8)
    if make is bucketed:
        two = zip(bucketed(0, 200, 0, 2), bucketed(0, 200, 1, 2), strict=True)
    else:
        two = zip(*(StepBatches(500, 4, 5, 0, 200, rank, 2) for rank in (0, 1)), strict=True)
    assert [a + b for a, b in two] == one


def test_buckets_hold_clips_of_like_length():
    def waste(batches):
        lengths = [[LENGTHS[draw.index] for draw in batch] for batch in batches]
        return 1 - sum(sum(row) for row in lengths) / sum(len(row) * max(row) for row in lengths)

    assert waste(bucketed(0, 125)) < 0.03 < 0.3 < waste(list(StepBatches(500, 4, 5, 0, 125)))


def test_long_and_short_batches_come_mixed():
    means = [np.mean([LENGTHS[draw.index] for draw in batch]) for batch in bucketed(0, 125)]
    assert abs(np.corrcoef(means, np.arange(125))[0, 1]) < 0.3


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 500])
@pytest.mark.parametrize("cycle", [0, 1, 5])
def test_any_number_of_clips_can_be_bucketed(size, cycle):
    assert sorted(bucketed_order(LENGTHS[:size], 3, cycle, batch=8)) == list(range(size))


def test_seeds_differ():
    first, second = (visits(StepBatches(50, 5, seed, 0, 10)) for seed in (1, 2))
    assert first != second


def test_coins_are_fair_and_differ_between_cycles():
    first, second = (coin(7, cycle, np.arange(10_000)) for cycle in (0, 1))
    assert coin(7, 0, 123) == first[123]
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(first < 0.5, second < 0.5)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
