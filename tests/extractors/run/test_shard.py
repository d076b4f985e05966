"""Who does which clip."""

import pytest

from extractors.run.planning import shard

NAMES = [f"clip {i}" for i in range(1000)]


def test_shards_divide_the_clips_evenly_and_share_none():
    parts = [shard(NAMES, index, 4) for index in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    assert all(200 < len(part) < 300 for part in parts)


def test_a_list_that_grows_moves_no_clip_to_another_shard():
    assert set(shard(NAMES[:500], 1, 3)) <= set(shard(NAMES, 1, 3))


@pytest.mark.parametrize("index", [-1, 3])
def test_a_shard_that_does_not_exist_is_refused(index):
    with pytest.raises(ValueError, match="from 0 to 2"):
        shard(NAMES, index, 3)
