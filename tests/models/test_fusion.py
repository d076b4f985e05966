import pytest
import torch

from affect.core.schema import UNMEASURED
from affect.models.fusion import (
    POSITIONS,
    AttentionBranch,
    FeatureNorm,
    MeanBranch,
    QFormerBranch,
    QFormerPreFusion,
    TokenBranch,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def qformer_branch(queries, positions=32):
    return QFormerBranch(6, 10, queries, positions, SMALL).eval()


@pytest.mark.parametrize("make", [qformer_branch, lambda q: AttentionBranch(6, 10, q), lambda q: MeanBranch(6, 10, q)])
def test_padding_does_not_change_a_branch(make):
    torch.manual_seed(0)
    branch = make(3)
    short = torch.randn(1, 4, 6)
    padded = torch.cat([short, torch.full((1, 3, 6), 99.0)], dim=1)
    mask = torch.arange(7)[None] < 4
    alone = branch(short, torch.ones(1, 4, dtype=torch.bool))
    assert alone.shape == (1, 3, 10)
    torch.testing.assert_close(branch(padded, mask), alone)


def streams(batch=2):
    torch.manual_seed(1)
    features = {"video": torch.randn(batch, 8, 6), "audio": torch.randn(batch, 8, 5), "au": torch.randn(batch, 3, 4)}
    masks = {kind: torch.ones(x.shape[:2], dtype=torch.bool) for kind, x in features.items()}
    return features, masks


def paired(features, masks):
    return {kind: (features[kind], masks[kind]) for kind in features}


def test_pre_fusion_ignores_what_is_masked_out():
    fusion = QFormerPreFusion({"video": 6, "audio": 5, "au": 4}, 10, 4, SMALL).eval()
    features, masks = streams()
    masks["audio"][0] = False
    masks["au"][:, 2:] = False
    before = fusion(paired(features, masks))
    features["audio"][0] += 50
    features["au"][:, 2:] -= 50
    torch.testing.assert_close(fusion(paired(features, masks)), before)
    features["video"] += 1
    assert not torch.allclose(fusion(paired(features, masks)), before)


def test_pre_fusion_tells_streams_and_positions_apart():
    fusion = QFormerPreFusion({"video": 6, "audio": 6}, 10, 4, SMALL).eval()
    for weight in fusion.parameters():
        weight.data *= 10  # fresh weights are so small that what they read hardly shows
    features, masks = streams()
    features = {"video": features["video"], "audio": features["video"].roll(1, 0)}
    masks = {kind: masks[kind] for kind in features}
    one_way = fusion(paired(features, masks))
    assert not torch.allclose(fusion(paired({k: x.flip(1) for k, x in features.items()}, masks)), one_way, atol=1e-4)


def test_attention_maps_are_distributions_over_the_streams_that_are_there():
    fusion = QFormerPreFusion({"video": 6, "audio": 5, "au": 4}, 10, 4, SMALL).eval()
    features, masks = streams()
    masks["audio"][0] = False
    maps = fusion.attention_maps(paired(features, masks))
    assert maps["video"].shape == (2, 2, 2, 4, 8)  # layers, batch, heads, queries, steps
    torch.testing.assert_close(sum(m.sum(-1) for m in maps.values()), torch.ones(2, 2, 2, 4))
    assert maps["audio"][:, 0].max() < 1e-6


def test_a_pre_fusion_without_anything_to_read_still_makes_tokens():
    fusion = QFormerPreFusion({"video": 6, "audio": 5}, 10, 4, SMALL).eval()
    features = {"video": torch.zeros(1, 0, 6), "audio": torch.zeros(1, 0, 5)}
    masks = {kind: torch.zeros(1, 0, dtype=torch.bool) for kind in features}
    tokens = fusion(paired(features, masks))
    assert tokens.shape == (1, 4, 10)
    assert tokens.isfinite().all()
    assert [weights.shape[-1] for weights in fusion.attention_maps(paired(features, masks)).values()] == [0, 0]


def test_long_sequences_share_positions():
    branch = qformer_branch(1, POSITIONS["audio"])
    long = torch.randn(1, 3 * POSITIONS["audio"], 6)
    assert branch(long, torch.ones(long.shape[:2], dtype=torch.bool)).isfinite().all()


def test_feature_norm_standardises_and_clamps():
    norm = FeatureNorm(2)
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    norm.fit(rows)
    out = norm(rows[None])
    torch.testing.assert_close(out[0, :, 0].mean(), torch.tensor(0.0))
    assert (out[0, :, 1] == 0).all()  # a constant column
    assert norm(torch.full((1, 1, 2), 1e6)).max() == FeatureNorm.LIMIT


def test_picture_tokens_are_its_rows_or_one_row_repeated():
    branch = TokenBranch(6, 10, 3)
    features = torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    tokens = branch(features, mask)
    torch.testing.assert_close(tokens[0], branch.proj(features[0]))
    torch.testing.assert_close(tokens[1], branch.proj(features[1, :1]).expand(3, -1))
    with pytest.raises(ValueError, match=r"1 row or num_image_query_token \(3\), found \[3, 2\]"):
        branch.check([3, 2])
    branch.check([0, 1, 3])


def test_patches_of_one_picture_share_its_position():
    branch = qformer_branch(2)
    for weight in branch.parameters():
        weight.data *= 10  # fresh weights are so small that what they read hardly shows
    features, mask = torch.randn(1, 2, 3, 6), torch.ones(1, 2, dtype=torch.bool)
    shuffled = features[:, :, [2, 0, 1]]  # within each picture
    torch.testing.assert_close(branch(shuffled, mask), branch(features, mask))
    assert not torch.allclose(branch(features.flip(1), mask), branch(features, mask), atol=1e-4)


def test_a_single_picture_is_scored_only_where_the_checkpoint_was_trained_so():
    features = {count: torch.randn(1, count, 6) for count in (1, 2)}
    for scored in (False, True):
        branch = AttentionBranch(6, 10, 1, keeps_single=not scored)
        branch.score.weight.data.zero_()  # a score of 0.5 for every picture
        branch.score.bias.data.fill_(0.5)
        for count, x in features.items():
            expected = x.sum(dim=1) if count == 1 and not scored else x.sum(dim=1) * 0.5
            out = branch(x, torch.ones(1, count, dtype=torch.bool))
            torch.testing.assert_close(out[:, 0], branch.proj(expected))


def test_what_nobody_measured_is_the_mean_and_counts_in_no_statistic():
    norm, known = FeatureNorm(2), torch.tensor([[1.0, 5.0], [3.0, 7.0], [5.0, 9.0]])
    norm.fit(known)
    other = FeatureNorm(2)
    other.fit(torch.cat([known, torch.full((4, 2), UNMEASURED)]))
    torch.testing.assert_close((other.mean, other.deviation), (norm.mean, norm.deviation))
    read = norm(torch.tensor([[[UNMEASURED, 9.0]]]))
    assert read[0, 0, 0] == 0 and read[0, 0, 1] > 1
