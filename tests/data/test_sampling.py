import numpy as np

from affect.data.sampling import StepBatches, draws


def test_every_cycle_visits_every_clip_once_in_another_order():
    visits = draws(10, seed=1, start=0, stop=30)
    cycles = [[draw.index for draw in visits if draw.cycle == cycle] for cycle in range(3)]
    assert all(sorted(cycle) == list(range(10)) for cycle in cycles)
    assert cycles[0] != cycles[1]


def test_a_late_start_sees_what_an_uninterrupted_run_sees():
    whole = list(StepBatches(size=7, batch_size=3, seed=5, first=0, last=12))
    assert list(StepBatches(size=7, batch_size=3, seed=5, first=8, last=12)) == whole[8:]


def test_processes_share_the_data_without_overlap():
    batches = [list(StepBatches(12, 2, 0, 0, 2, rank, world=3)) for rank in range(3)]
    seen = [draw.index for process in batches for batch in process for draw in batch]
    assert sorted(seen) == list(range(12))


def test_seeds_differ():
    assert not np.array_equal([d.index for d in draws(50, 1, 0, 50)], [d.index for d in draws(50, 2, 0, 50)])
