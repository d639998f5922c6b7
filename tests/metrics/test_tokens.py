"""Sampling, deduplication and dropping of tokens, against numpy and plain Python."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from made_tokens import normal, tokens_of
from scipy import stats

from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.metrics import Tokens, concatenate, deduplicate, finite, sampling_key, subsample
from mm_lens.metrics.intervals import clustered_error, sample_groups, student_quantile
from mm_lens.metrics.tokens import centre, unique_rows
from mm_lens.profiling.collecting.token_sample import MergedSample, TokenSample


def same(a: Tokens, b: Tokens) -> bool:
    return all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("x", "sample", "position", "token_id")
    )


def test_rows_must_agree_in_number():
    zeros = torch.zeros(3, dtype=torch.long)
    init = inspect.unwrap(Tokens.__init__)  # without the check of types, which users do not have
    with pytest.raises(InputError, match=r"\[4, 3, 3, 3\] rows"):
        init(Tokens.__new__(Tokens), torch.zeros(4, 2), zeros, zeros, zeros)


def test_subsample_depends_on_nothing_but_seed_sample_and_position():
    tokens = tokens_of(normal(0, 500, 3), samples=20)
    chosen = subsample(tokens, 100, seed=3)
    shuffled = tokens.take(torch.randperm(500))
    assert same(subsample(shuffled, 100, seed=3), chosen)
    assert not same(subsample(tokens, 100, seed=4), chosen)


def test_a_smaller_sample_is_part_of_a_larger_one():
    tokens = tokens_of(normal(0, 500, 3), samples=20)
    large = subsample(tokens, 200)
    assert same(subsample(tokens, 50), large.take(torch.arange(50)))
    assert same(subsample(large, 50), subsample(tokens, 50))
    assert len(subsample(tokens, 900)) == 500


def test_merged_shards_equal_one_process():
    tokens = tokens_of(normal(0, 400, 3), samples=16)
    parts = [subsample(tokens.take(tokens.sample % 4 == k), 100) for k in range(4)]
    assert same(subsample(concatenate(*parts), 100), subsample(tokens, 100))


def sequences(n: int, per_sample: int, length: int) -> Tokens:
    """Several sequences of every sample: tokens of one sample and position, told apart by keys."""
    index = torch.arange(n)
    sequence, position = index // length, index % length
    sample = sequence // per_sample
    return Tokens(normal(0, n, 3), sample, position, index, sampling_key(sequence, position))


def test_sequences_of_one_sample_are_chosen_each_by_its_own_key():
    tokens = sequences(2000, per_sample=5, length=20)
    chosen = subsample(tokens, 1000)
    shuffled = tokens.take(torch.randperm(2000, generator=torch.Generator().manual_seed(1)))
    assert same(subsample(shuffled, 1000), chosen)
    together = torch.zeros(20, 20).long()  # of each sample and position, how many of five
    together.index_put_((chosen.sample, chosen.position), torch.tensor(1), accumulate=True)
    # Independent choices: variance 5 / 4 where all or none would be 25 / 4.
    assert float(together.double().var()) == pytest.approx(1.25, rel=0.3)
    # Without the keys the five are one choice.
    tied = subsample(Tokens(tokens.x, tokens.sample, tokens.position, tokens.token_id), 1000)
    together = torch.zeros(20, 20).long()
    together.index_put_((tied.sample, tied.position), torch.tensor(1), accumulate=True)
    assert set(together.unique().tolist()) <= {0, 5}


def test_keys_go_where_their_rows_go():
    tokens = sequences(100, 5, 10)
    assert tokens.key is not None
    rows = torch.tensor([3, 99, 0])
    assert torch.equal(tokens.take(rows).keys(), tokens.key[rows])
    assert torch.equal(tokens.to("cpu").keys(7), tokens.key)
    assert torch.equal(concatenate(tokens, tokens.take(rows)).keys()[100:], tokens.key[rows])
    with pytest.raises(InputError, match="all of them one, or none"):
        concatenate(tokens, tokens_of(normal(0, 5, 3)))


def test_a_profile_samples_questions_about_one_image_apart():
    """The keys by which tokens were drawn stay with them: of the question, not of the image."""
    drawn = TokenSample(64, ["text"], seed=0)
    ids = torch.arange(32).view(4, 8)
    drawn.plan(TokenLayout.build(ids, image_token_id=99), ids, ["a", "b", "c", "d"], [7, 7, 7, 7])
    drawn.write("residual", 0, normal(0, 4, 8, 3))
    tokens = MergedSample(64, ["text"], [drawn]).tokens("residual", 0, "text")
    assert tokens is not None
    assert tokens.sample.unique().tolist() == [7]
    assert len(tokens.keys().unique()) == len(tokens) == 32
    assert same(subsample(tokens, 9), tokens.take(torch.arange(9)))


def test_sampling_is_uniform_over_samples_and_positions():
    sample, position = torch.meshgrid(torch.arange(400), torch.arange(100), indexing="ij")
    key = sampling_key(sample.flatten(), position.flatten(), 0)
    chosen = (key <= key.sort().values[9999]).view(400, 100).double()
    # 0.25 ± 5 standard deviations of a binomial
    assert (chosen.mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 400) ** 0.5
    assert (chosen.mean(1) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 100) ** 0.5
    assert len(key.unique()) == 40_000


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_deduplicate_equals_numpy_unique(dtype):
    pool = normal(1, 60, 5).to(dtype)
    x = pool[torch.randint(60, (400,), generator=torch.Generator().manual_seed(2))]
    first, counts = unique_rows(x)
    _, expected, expected_counts = np.unique(
        x.double().numpy(), axis=0, return_index=True, return_counts=True
    )
    order = expected.argsort()
    assert first.tolist() == expected[order].tolist()
    assert counts.tolist() == expected_counts[order].tolist()
    kept, dropped = deduplicate(tokens_of(x))
    assert (len(kept), dropped) == (len(expected), 400 - len(expected))
    assert torch.equal(kept.x, x[torch.from_numpy(expected[order])])


def test_negative_zero_is_zero_and_a_last_bit_is_a_difference():
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0 + 2**-23]])
    assert unique_rows(x)[1].tolist() == [2, 1]


def test_rows_finite_in_every_set_are_kept():
    x, y = normal(0, 6, 2), normal(1, 6, 2)
    x[1, 0], y[4, 1] = torch.inf, torch.nan
    (a, b), dropped = finite(tokens_of(x), tokens_of(y))
    assert dropped == 2
    assert torch.equal(a.x, x[[0, 2, 3, 5]])
    assert torch.equal(b.x, y[[0, 2, 3, 5]])


def test_constant_columns_are_centred_to_exactly_zero():
    x = normal(0, 1001, 3)
    x[:, 1] = 0.1
    assert float((x[:, 1] - x[:, 1].mean()).abs().max()) > 0  # what plain centring leaves
    centred = centre(x)
    assert not centred[:, 1].any()
    assert centred[:, 0].any()


def test_groups_hold_whole_samples_and_equal_numbers_of_them():
    sample = torch.arange(50).repeat_interleave(torch.arange(1, 51))
    group, count = sample_groups(sample, 16, seed=1)
    assert count == 16
    groups = [group[sample == s].unique() for s in range(50)]
    assert all(len(g) == 1 for g in groups)
    sizes = torch.cat(groups).bincount()
    assert sizes.max() - sizes.min() <= 1
    assert sample_groups(torch.tensor([7, 7, 9]), 16)[1] == 2


def test_clustered_error_of_a_mean_is_that_of_the_sample_means():
    values, sample = normal(0, 60), torch.arange(60) % 12
    error, freedom = clustered_error((values - values.mean()) / 60, sample)
    means = torch.stack([values[sample == s].mean() for s in range(12)])
    assert freedom == 11
    assert error == pytest.approx(float(means.std() / 12**0.5), rel=1e-12)


def test_unequal_samples_pull_as_leaving_them_out_does():
    """Of a mean, dividing by 1 - w is the jackknife over samples itself."""
    values, sample = normal(0, 80), torch.tensor([0, 1, 1, 2, 2, 2, 3, 4, 4, 4]).repeat(8)
    error, freedom = clustered_error((values - values.mean()) / 80, sample)
    left = [float(values[sample != s].mean()) for s in range(5)]
    spread = sum((v - sum(left) / 5) ** 2 for v in left)
    assert error == pytest.approx((spread * 4 / 5) ** 0.5, rel=1e-12)
    sizes = np.array([8, 16, 24, 8, 24])
    assert freedom == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum() - 1)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4.6, 10, 15, 15.5, 1000])
def test_student_quantiles_are_exact(freedom):
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    assert student_quantile(freedom, 0.9) == pytest.approx(stats.t.ppf(0.9, freedom), rel=1e-9)
