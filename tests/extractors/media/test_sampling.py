"""Sampling of frames against the reference's numbers."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from extractors.media.sampling import frame_indices, headtail_indices, peak_indices, uniform_indices


def goldens(shared: Path, name: str) -> list[dict]:
    return json.loads((shared / f"goldens/sampling/{name}.json").read_text())["cases"]


def peak_info(total: int, peak: int) -> dict:
    sides = {"peak_index": peak, "frames_before_peak": peak, "frames_after_peak": total - 1 - peak}
    return {"total_frames": total, "peak_frames": [sides]}


def test_uniform_indices_are_the_references(shared):
    for case in goldens(shared, "uniform"):
        assert uniform_indices(case["vlen"], case["n_frms"]) == case["indices"], case


def test_peak_indices_are_the_references_clipped_to_the_clip(shared):
    cases = [case for case in goldens(shared, "smart_peak") if (case["au_info"] or {}).get("peak_frames")]
    assert len(cases) > 50
    for case in cases:
        expected = np.clip(case["indices"], 0, case["video_frames"] - 1).tolist()
        assert peak_indices(case["au_info"], case["video_frames"]) == expected, case


def test_without_a_peak_frames_are_uniform_where_the_reference_took_a_linspace(shared):
    cases = [case for case in goldens(shared, "smart_peak") if not (case["au_info"] or {}).get("peak_frames")]
    assert cases
    for case in cases:
        with pytest.warns(UserWarning, match="uniform frames"):
            indices = peak_indices(case["au_info"], case["video_frames"])
        assert indices == uniform_indices(case["video_frames"])
    assert any(case["indices"] != uniform_indices(case["video_frames"]) for case in cases)  # the known difference


@pytest.mark.parametrize("total, n", list(itertools.product([1, 2, 3, 7, 50], [1, 2, 3, 5, 8, 16])))
def test_peak_indices_are_n_sorted_frames_with_the_peak_among_them(total, n):
    for peak in {0, total // 2, total - 1}:
        indices = peak_indices(peak_info(total, peak), total, n)
        assert len(indices) == n
        assert indices == sorted(indices)
        assert peak in indices
        assert set(indices) <= set(range(total))
        assert len(set(indices)) == min(n, total)


def test_few_peak_frames_stay_beside_the_peak():
    assert peak_indices(peak_info(100, 40), 100, 3) == [39, 40, 41]
    assert peak_indices(peak_info(100, 0), 100, 3) == [0, 1, 2]


@pytest.mark.parametrize("total", [1, 2, 5, 8, 9, 50])
def test_headtail_takes_both_ends_and_half_from_each_half(total):
    indices = headtail_indices(total, 8)
    assert (indices[0], indices[-1], len(indices)) == (0, total - 1, 8)
    assert indices == sorted(indices)
    if total > 1:
        assert all(i < total // 2 for i in indices[:4])
        assert all(i >= total // 2 for i in indices[4:])


def test_sampling_is_chosen_by_its_word():
    info = peak_info(50, 20)
    assert frame_indices(50, 8, "uniform", info) == uniform_indices(50)
    assert frame_indices(50, 8, "headtail", info) == headtail_indices(50)
    assert frame_indices(50, 8, "emotion_peak", info) == peak_indices(info, 50)
    with pytest.raises(ValueError, match="'peak' is not known: expected one of uniform, headtail, emotion_peak"):
        frame_indices(50, 8, "peak")
    with pytest.raises(ValueError, match="0 frames"):
        frame_indices(0)
