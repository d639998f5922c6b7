"""Intervals of functions of several values: right on planted truth, narrow for shared errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_profiles import GROUPS, noise, planted
from made_tokens import clustered, normal, rotation
from scipy import stats

from mm_lens.comparing.paired import Curve, Quantity, combine, curves, holm, two_sided
from mm_lens.metrics import Tokens, evaluate
from mm_lens.metrics.intervals import Replicates, sample_groups, student_quantile
from mm_lens.profiling.result import Profile

# ---- p values ----


@pytest.mark.parametrize("freedom", [1, 2, 3, 4.6, 15, 16])
@pytest.mark.parametrize("t", [0.0, 0.4, -1.7, 2.131449545559323, 9.0])
def test_two_sided_p_is_students(t, freedom):
    assert two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-13)


def test_holm_by_hand():
    # Sorted: .01 x 4, .02 x 3, .03 x 2, .04 x 1; never below the one before; a NaN is no test.
    assert holm([0.03, 0.01, math.nan, 0.04, 0.02]) == pytest.approx(
        [0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("freedom", [3, 4.6, 15])
def test_an_interval_ends_at_zero_where_p_is_a_twentieth(freedom):
    error = 1 / stats.t.ppf(0.975, freedom)
    just = Quantity(1.0, error, freedom)
    assert just.p() == pytest.approx(0.05, abs=1e-12)
    assert just.low == pytest.approx(0, abs=1e-12)
    for nudge in (0.999, 1.001):
        other = Quantity(1.0, nudge * error, freedom)
        assert (other.p() < 0.05) == (other.low > 0)


# ---- replicates ----


def test_groups_follow_the_samples_alone():
    samples = normal(0, 500).mul(1e12).long()
    few, many = samples[torch.randperm(500)], samples.repeat_interleave(3)
    by_sample = dict(zip(few.tolist(), sample_groups(few, 16)[0].tolist(), strict=True))
    groups = sample_groups(many, 16)[0].tolist()
    assert [by_sample[s] for s in many.tolist()] == groups
    assert max(np.bincount(groups)) - min(np.bincount(groups)) <= 3  # one sample
    # Where two in a hundred are missing, nearly all others stay where they were.
    most = few[normal(1, 500).argsort()[:490]]
    moved = [
        by_sample[s] != g for s, g in zip(most.tolist(), sample_groups(most, 16)[0], strict=True)
    ]
    assert np.mean(moved) < 0.1


def tokens(x, sample):
    ids = torch.arange(len(x))
    return Tokens(x, sample, ids + 1, ids % 7)


def without(group, g, *given):
    return [t.take(group != g) for t in given]


def test_replicates_of_linearity_spread_as_plain_refits_do():
    x, sample = normal(0, 600, 5), torch.arange(600) // 10
    y = x @ normal(1, 5, 5) + normal(2, 600, 5)
    pair = tokens(x, sample), tokens(y, sample)
    found = evaluate(*pair, ["linearity_paper"])["linearity_paper"].replicates
    group, _ = sample_groups(sample, GROUPS)

    def left_over(a, b):
        a, b = a.x - a.x.mean(0), b.x - b.x.mean(0)
        residual = b - a @ torch.linalg.lstsq(a, b).solution
        return math.log(float(residual.square().sum() / b.square().sum()))

    refits = np.array([left_over(*without(group, g, *pair)) for g in range(GROUPS)])
    spread = np.log(1 - np.array(found.values))
    np.testing.assert_allclose(spread - spread.mean(), refits - refits.mean(), atol=1e-9)


@pytest.mark.parametrize("name", ["anisotropy", "anisotropy_without_first", "mean_cosine"])
def test_replicates_are_nearly_the_values_without_each_group(name):
    x = clustered(0, 1200, 6, 120, 0.3) * torch.tensor([3.0, 2, 1, 1, 1, 1]).double() + 1
    all_tokens = tokens(x, torch.arange(1200) % 120)
    found = evaluate(all_tokens, None, [name])[name]
    group, _ = sample_groups(all_tokens.sample, GROUPS)
    truth = [
        evaluate(*without(group, g, all_tokens), None, [name])[name].value for g in range(GROUPS)
    ]
    error = np.abs(np.array(found.replicates.values) - truth)
    assert error.max() < 0.15 * np.std(truth)


@pytest.mark.parametrize(
    "name", ["dimension_mle", "dimension_paper", "anisotropy", "linearity_heldout", "mean_cosine"]
)
def test_replicates_make_the_interval_of_the_table(name):
    x = clustered(3, 2000, 6, 400, 0.3) * torch.tensor([3.0, 2, 1, 1, 1, 1]).double() + 0.3
    y = x @ normal(1, 6, 6) + normal(2, 2000, 6)
    sample = torch.arange(2000) % 400
    e = evaluate(tokens(x, sample), tokens(y, sample), [name])[name]
    deviations = np.array(e.replicates.values) - np.mean(e.replicates.values)
    error = math.hypot(math.sqrt(15 / 16 * float(deviations @ deviations)), e.replicates.rest)
    # The standard error of the table rests on 400 samples or on refits, this one on 16 groups.
    assert (e.high - e.low) / 2 / 2.0 == pytest.approx(error, rel=0.5)


def test_few_samples_have_no_replicates():
    found = evaluate(tokens(normal(0, 90, 3), torch.arange(90) % 3), None, ["anisotropy"])
    assert found["anisotropy"].replicates.values == ()


# ---- functions of values ----


def made_curve(values, error, model="a", z=None, rest=0.0) -> Curve:
    """A curve whose layers err by `error`, together."""
    values = np.asarray(values, float)
    layer = np.arange(len(values), dtype=float)
    deviations = np.outer(np.full(len(values), error), np.zeros(0) if z is None else z)
    deviations *= math.sqrt((GROUPS - 1) / GROUPS)
    rests = np.full(len(values), rest)
    table = planted(metrics=("anisotropy",)).table.iloc[: len(values)]
    return Curve(model, layer, layer / max(len(values) - 1, 1), values, deviations, rests, table)


def test_shared_errors_cancel_and_independent_ones_add():
    a, b = made_curve([5, 7], 0.3, "a", noise(0)), made_curve([2, 3], 0.3, "b", noise(0))
    one = np.array([0.0, 1.0])
    same = combine((a, one), (b, -one))
    assert (same.value, same.freedom) == (4.0, GROUPS - 1)
    assert same.error == pytest.approx(0, abs=1e-12)
    apart = combine((a, one), (b, -one), paired=False)
    assert apart.error == pytest.approx(0.3 * math.sqrt(2))
    other = made_curve([2, 3], 0.4, "b", noise(1))
    cosine = noise(0) @ noise(1) * (GROUPS - 1) / GROUPS
    expected = math.sqrt(0.3**2 + 0.4**2 - 2 * 0.3 * 0.4 * cosine)
    assert combine((a, one), (other, -one)).error == pytest.approx(expected)
    assert apart.high - apart.low == pytest.approx(
        2 * stats.t.ppf(0.975, 15) * apart.error, rel=1e-4
    )


def test_layers_err_together_within_a_model():
    z = noise(0)
    curve = made_curve([1, 2, 3, 4], 0.2, z=z)
    assert combine((curve, curve.mean())).error == pytest.approx(0.2)
    trend = combine((curve, np.array([-1.0, 0, 0, 1])))
    assert (trend.value, trend.error) == (3.0, pytest.approx(0, abs=1e-12))


def test_without_replicates_the_bound_is_wide():
    a, b = made_curve([1, 2], 0, "a", rest=0.1), made_curve([1, 2], 0, "b", rest=0.1)
    assert combine((a, np.array([-1.0, 1]))).error == pytest.approx(0.2)  # |w| sums
    assert combine((a, np.ones(2)), (b, -np.ones(2))).error == pytest.approx(0.2 * math.sqrt(2))
    wider = replace(b, rest=np.array([0.2, 0.2]))
    first = np.array([1.0, 0])
    assert combine((a, 3 * first), (wider, 2 * first)).rest == pytest.approx(0.5)  # 0.3 and 0.4


def test_a_missing_value_is_not_used_and_not_hidden():
    curve = made_curve([1, np.nan, 3], 0.1, z=noise(0))
    assert combine((curve, np.array([1.0, 0, 1]))).value == 4.0
    missing = combine((curve, curve.mean()))
    assert not missing.known
    assert math.isnan(missing.p())


def test_values_between_layers_are_interpolated():
    curve = made_curve([0, 2, 10], 0)
    for depth, value in ((0.0, 0), (0.25, 1), (0.5, 2), (0.75, 6), (1.0, 10)):
        assert combine((curve, curve.at(depth))).value == value
    assert combine((curve, curve.at(-1.0))).value == 0
    assert combine((curve, curve.at(2.0))).value == 10


def test_curves_of_a_profile():
    profile = planted(metrics=("linearity_paper", "anisotropy"), n_layers=4, error=0.02)
    found = curves("x", profile)
    pair = found["residual", "visual", "linearity_paper"]
    assert pair.layer.tolist() == [1, 2, 3, 4]
    assert pair.depth.tolist() == [0.125, 0.375, 0.625, 0.875]
    one = found["main", "text", "anisotropy"]
    assert one.depth.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert combine((one, one.at(0.5))).error == pytest.approx(0.02)
    bare = curves("x", planted(metrics=("anisotropy",), error=0.02, replicates=False))
    single = bare["main", "text", "anisotropy"]
    assert combine((single, single.at(0.0))).error == pytest.approx(0.02, rel=1e-4)


def test_p_values_of_huge_statistics_are_zero_not_less():
    for freedom in (1, 2, 15, 16, 30):
        assert 0 <= two_sided(1e12, freedom) < 1e-11


def test_p_of_a_number_is_students():
    found = Quantity(3.0, 0.5, 7)
    assert found.p() == pytest.approx(2 * stats.t.sf(6.0, 7), abs=1e-13)
    assert found.p(4.0) == pytest.approx(2 * stats.t.sf(2.0, 7), abs=1e-13)
    exact = Quantity(3.0, 0.0, 7)
    assert (exact.p(3.0), exact.p(2.0), exact.p()) == (1.0, 0.0, 0.0)
    for value, error in ((math.nan, 1.0), (1.0, math.nan), (1.0, math.inf), (math.inf, 1.0)):
        assert not Quantity(value, error, 7).known
        assert math.isnan(Quantity(value, error, 7).p())


def test_intervals_are_students():
    found = Quantity(3.0, 0.5, 60)
    ends = stats.t.interval(0.95, 60, loc=3.0, scale=0.5)
    assert (found.low, found.high) == pytest.approx(ends, rel=1e-7)


def grouped(model, count, error=0.3, rest=0.0):
    """Two layers that err alike in `count` groups."""
    z = noise(0)[:count] - noise(0)[:count].mean()
    z *= error / np.linalg.norm(z)
    base = made_curve([5, 7], 0, model, rest=rest)
    return replace(base, deviations=np.stack([z, z]), freedom=count - 1)


def test_the_fewest_groups_say_how_sure_the_error_is():
    one = np.array([0.0, 1.0])
    many, few, none = grouped("a", 16), grouped("b", 8, 0.4), made_curve([2, 3], 0, "c", rest=0.1)
    for parts in (((many, one), (few, -one)), ((few, one), (many, -one))):
        found = combine(*parts)
        assert found.freedom == 7
        # Other groups are other documents: their errors are independent, though paired.
        assert found.error == pytest.approx(0.5)
    assert combine((many, one)).freedom == combine((many, one), (none, one)).freedom == 15
    assert combine((none, one)).freedom == GROUPS - 1
    assert combine((few, one), (none, one)).freedom == 7
    # No more than the groups of samples tell, whatever a curve says.
    assert combine((replace(many, freedom=99), one)).freedom == GROUPS - 1


def test_a_model_is_never_independent_of_itself():
    one = np.array([0.0, 1.0])
    a = grouped("a", 16, 0.3, rest=0.2)
    for paired in (True, False):
        same = combine((a, one), (a, one), paired=paired)
        assert same.error == pytest.approx(math.hypot(0.6, 0.4))
        assert combine((a, one), (a, -one), paired=paired).error == pytest.approx(0.4)


def test_taken_layers_keep_their_own_values():
    curve = grouped("a", 16, rest=0.1)
    taken = curve.take(np.array([False, True]))
    assert taken.model == "a"
    for name in ("layer", "depth", "value", "deviations", "rest"):
        assert getattr(taken, name).tolist() == getattr(curve, name)[1:].tolist(), name
    assert taken.table.equals(curve.table.iloc[1:])
    assert taken.mean().tolist() == [1.0]
    assert curve.take(np.array([False, False])).mean().tolist() == []


# Table and replicates as files hold them: rows in any order, groups that are missing.
NAN = math.nan
PLACES = [
    ("main", 2, "text", "anisotropy", 0.5, 0.4, 0.8),
    ("main", 0, "text", "anisotropy", 0.1, 0.0, 0.2),
    ("main", 1, "text", "anisotropy", 0.3, 0.2, 0.6),
    ("main", 1, "text", "linearity_paper", 0.7, 0.6, 0.8),
    ("main", 1, "text", "a_metric_by_hand", 2.0, 1.0, 4.0),
]
COPIES = [
    # stream, layer, modality, metric, rest, g0, g1, g10, of another kind
    ("main", 0, "text", "anisotropy", 0.05, 1.0, 2.0, 6.0, "x"),
    ("main", 2, "text", "anisotropy", 0.07, 3.0, NAN, 5.0, "x"),
    ("residual", 1, "text", "anisotropy", 9.0, 9.0, 8.0, 7.0, "x"),
    ("main", 1, "text", "linearity_paper", 0.01, 4.0, 6.0, NAN, "x"),
    ("main", 1, "text", "a_metric_by_hand", 0.02, NAN, NAN, NAN, "x"),
]


def by_hand(replicates=True):
    columns = ["stream", "layer", "modality", "metric"]
    table = pd.DataFrame(PLACES, columns=[*columns, "value", "low", "high"], index=[7, 3, 5, 1, 0])
    copies = pd.DataFrame(COPIES, columns=[*columns, "rest", "g0", "g1", "g10", "gx"])
    copies["x1"] = "y"
    about = {"model": {"name": "m", "architecture": "M", "n_layers": 4}}
    return Profile(table, about, copies if replicates else copies.iloc[:0])


@pytest.mark.filterwarnings("error")
def test_errors_are_read_from_the_replicates_where_there_are_any():
    found = curves("label", by_hand())
    # In the order in which they come, layer by layer.
    assert [*found] == [
        ("main", "text", name) for name in ("anisotropy", "linearity_paper", "a_metric_by_hand")
    ]
    curve = found["main", "text", "anisotropy"]
    assert curve.model == "label"
    assert curve.layer.tolist() == [0, 1, 2]
    assert curve.depth.tolist() == [0, 0.25, 0.5]
    assert curve.value.tolist() == [0.1, 0.3, 0.5]
    # Means 3 (of three) and 4 (of two); layer 1 has no replicates, so its interval takes over.
    thirds, half = math.sqrt(2 / 3), math.sqrt(1 / 2)
    np.testing.assert_allclose(
        curve.deviations,
        [[-2 * thirds, -1 * thirds, 3 * thirds], [0, 0, 0], [-1 * half, 0, 1 * half]],
    )
    alone = 0.2 / student_quantile(GROUPS - 1)  # half of 0.2 to 0.6
    np.testing.assert_allclose(curve.rest, [0.05, alone, 0.07])
    assert curve.table.layer.tolist() == [0, 1, 2]
    assert [*curve.table.columns] == [*by_hand().table.columns, "line"]

    pair = found["main", "text", "linearity_paper"]
    assert pair.depth.tolist() == [0.125]
    np.testing.assert_allclose(pair.deviations, [[-half, half]])  # g10 is of no layer here
    other = found["main", "text", "a_metric_by_hand"]
    assert other.depth.tolist() == [0.25]
    assert other.deviations.shape == (1, 0)
    np.testing.assert_allclose(other.rest, 1.5 / student_quantile(GROUPS - 1))


def test_errors_go_to_the_rows_they_were_made_for():
    """Rows that differ in hook, in head or in source alone have replicates of their own."""
    plain = planted(metrics=("dimension_mle",), streams=("residual",), modalities=("visual",))
    mlp, attention = "blocks.0.hook_mlp_out", "blocks.0.hook_attn_out"
    rows = [
        ("mlp_out", mlp, -1, "", 0.01),
        ("attn_out", attention, -1, "", 0.02),
        ("mlp_out", mlp, 0, "", 0.03),
        ("mlp_out", mlp, -1, attention, 0.04),
    ]
    table = pd.concat([plain.table[plain.table.layer == 1]] * 4, ignore_index=True)
    table[["component", "hook", "head", "source"]] = [row[:4] for row in rows]
    copies = table[["stream", "layer", "modality", "metric", "hook", "head", "source"]].assign(
        rest=0.0
    )
    for g, z in enumerate(noise(0)):
        copies[f"g{g}"] = [value + row[4] * z for value, row in zip(table.value, rows, strict=True)]
    found = curves("x", Profile(table, plain.provenance, copies.iloc[::-1]))
    errors = {key[3]: np.linalg.norm(curve.deviations) for key, curve in found.items()}
    assert errors == pytest.approx(
        {"mlp_out": 0.01, "attn_out": 0.02, "mlp_out head 0": 0.03, "attn_out → mlp_out": 0.04}
    )


def test_the_freedom_of_a_curve_is_the_least_of_its_layers():
    plain = planted(metrics=("anisotropy",), streams=("main",), modalities=("text",), n_layers=3)

    def freedom(replicates):
        return curves("x", Profile(plain.table, plain.provenance, replicates))[
            "main", "text", "anisotropy"
        ].freedom

    copies = plain.replicates
    assert freedom(copies) == GROUPS - 1
    assert freedom(None) == GROUPS - 1
    few = copies.copy()
    few.loc[few.layer == 2, [f"g{g}" for g in range(10, GROUPS)]] = math.nan
    assert freedom(few) == 9
    assert freedom(copies.assign(freedom=[6.0, 4.5, 40.0, math.nan])) == 4.5
    assert freedom(few.assign(freedom=40.0)) == 9


@pytest.mark.parametrize("last", [0, 1, 4])
def test_the_tower_has_a_depth_of_its_own(last):
    """From its first state to the last that the model reads; other components are named."""
    plain = planted(metrics=("dimension_mle",), streams=("residual",), modalities=("visual",))
    states = plain.table
    tower, mlp = (states[states.layer.between(low, last + low)].copy() for low in (0, 1))
    tower["component"], mlp["component"] = "tower.resid_post", "mlp_out"
    tower["hook"] = [f"vision_encoder.encoder_layers.{n}.hook_out" for n in tower.layer]
    mlp["hook"] = [f"blocks.{n - 1}.hook_mlp_out" for n in mlp.layer]
    table = pd.concat([states, tower, mlp])
    found = curves("x", Profile(table, plain.provenance, plain.replicates))
    key = ("residual", "visual", "dimension_mle")
    assert {*found} == {key, (*key, "tower"), (*key, "mlp_out")}
    assert [*found[key].depth] == pytest.approx([n / 9 for n in range(10)])
    assert [*found[*key, "tower"].depth] == [n / max(last, 1) for n in range(last + 1)]
    assert [*found[*key, "mlp_out"].depth] == pytest.approx([n / 9 for n in range(1, last + 2)])


def test_curves_keep_the_order_of_the_table():
    names = ("dimension_mle", "anisotropy_trimmed", "anisotropy")
    profile = planted(metrics=names)
    order = dict.fromkeys(profile.table[["stream", "modality", "metric"]].itertuples(index=False))
    assert [*curves("x", profile)] == [tuple(key) for key in order]


def test_values_may_be_whole_numbers():
    plain = by_hand()
    table = plain.table.assign(value=[5, 1, 3, 7, 2])
    found = curves("x", Profile(table, plain.provenance, plain.replicates))
    values = found["main", "text", "anisotropy"].value
    assert (values.tolist(), values.dtype) == ([1.0, 3.0, 5.0], np.dtype(float))


def test_without_replicates_the_interval_stands_for_the_error():
    plain = by_hand()
    for profile in (by_hand(replicates=False), Profile(plain.table, plain.provenance, None)):
        curve = curves("label", profile)["main", "text", "anisotropy"]
        assert curve.deviations.shape == (3, 0)
        halves = np.array([0.1, 0.2, 0.2])
        np.testing.assert_allclose(curve.rest, halves / student_quantile(GROUPS - 1))


# ---- coverage ----


def mean_curve(model, documents, own) -> Curve:
    """Means over documents, one layer per column, with their replicates."""
    data = documents + own
    ids = torch.arange(len(data))
    replicates = np.array(
        [
            Replicates.of(float(c.mean()), torch.tensor((c - c.mean()) / len(c)), ids).values
            for c in data.T
        ]
    )
    deviations = replicates - replicates.mean(1, keepdims=True)
    curve = made_curve(data.mean(0), 0.0, model)
    scaled = deviations * math.sqrt((GROUPS - 1) / GROUPS)
    return Curve(model, curve.layer, curve.depth, curve.value, scaled, curve.rest, curve.table)


def test_paired_intervals_contain_the_truth_and_are_narrower():
    rng, repetitions = np.random.default_rng(0), 120
    hits, widths = np.zeros(3), np.zeros(2)
    for _ in range(repetitions):
        documents = rng.normal(size=(120, 1))  # what every layer of both models shares
        a = mean_curve("a", documents, 0.6 * rng.normal(size=(120, 4)) + np.arange(4))
        b = mean_curve("b", documents, 0.6 * rng.normal(size=(120, 4)))
        last = np.array([0.0, 0, 0, 1])
        gap, apart = combine((a, last), (b, -last)), combine((a, last), (b, -last), paired=False)
        mean, trend = combine((a, a.mean())), combine((a, np.array([-1.0, 0, 0, 1])))
        for i, (found, truth) in enumerate(((gap, 3.0), (mean, 1.5), (trend, 3.0))):
            hits[i] += found.low <= truth <= found.high
        widths += [gap.error, apart.error]
    # 120 repetitions of 95 %: fewer than 105 contain the truth once in 1,000.
    assert min(hits) >= 105, hits
    assert widths[0] < 0.7 * widths[1]


def two_models(seed: int, name: str):
    """Tokens of two models on the same 60 documents, and the true difference of the metric."""
    n, documents = 900, 60
    sample = torch.arange(n) % documents
    common = normal(seed, documents, 8)[sample]
    own = [normal(seed + 10**6 * k, n, 8) for k in (1, 2)]
    latent = [0.6**0.5 * common + 0.4**0.5 * o for o in own]
    if name == "dimension_mle":
        clouds = [latent[0][:, :5] @ rotation(0, 8)[:5], latent[1][:, :3] @ rotation(1, 8)[:3]]
        return [(tokens(c, sample), None) for c in clouds], 2.0
    if name == "anisotropy":
        scales = torch.tensor([[3.0, 2] + [1] * 6, [2.0, 2] + [1] * 6]).double()
        return [(tokens(x * s, sample), None) for x, s in zip(latent, scales, strict=True)], (
            9 / 19 - 4 / 14
        )
    # Y = X + noise that the documents share: R² = 1 / (1 + variance).
    shared = normal(seed + 7, documents, 8)[sample]
    pairs = []
    for x, o, size in zip(own, (3, 4), (1.0, 0.5), strict=True):
        wild = 0.5**0.5 * (shared + normal(seed + 10**6 * o, n, 8))
        pairs.append((tokens(x, sample), tokens(x + size**0.5 * wild, sample)))
    return pairs, 1 / 2 - 1 / 1.5


def paired_coverage(name: str, repetitions: int) -> tuple[float, float]:
    """How often the interval contains the true difference; width over the unpaired width."""
    hits, widths = 0, np.zeros(2)
    for seed in range(repetitions):
        models, truth = two_models(seed, name)
        parts = []
        for i, (x, y) in enumerate(models):
            e = evaluate(x, y, [name])[name]
            z = np.array(e.replicates.values) - np.mean(e.replicates.values)
            curve = made_curve([e.value], 1.0, "ab"[i], z, e.replicates.rest)
            parts.append((curve, np.array([1.0 - 2 * i])))
        found, apart = combine(*parts), combine(*parts, paired=False)
        hits += found.low <= truth <= found.high
        widths += [found.error, apart.error]
    return hits / repetitions, float(widths[0] / widths[1])


def test_differences_of_metrics_usually_contain_the_truth():
    found, narrower = paired_coverage("anisotropy", 24)
    assert found >= 19 / 24  # fewer once in 1,000
    assert narrower < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anisotropy", "dimension_mle", "linearity_adjusted"])
def test_coverage_of_differences(name):
    found, narrower = paired_coverage(name, 100)
    assert found >= 0.88, found  # fewer once in 200
    assert narrower < 1.0
