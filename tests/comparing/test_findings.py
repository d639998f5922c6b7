"""Verdicts by hand: statements whose answers are fixed here, on planted curves."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from made_profiles import T, planted

from mm_lens.comparing import findings
from mm_lens.comparing.findings import COLUMNS, find, installed_claims, layers_of
from mm_lens.comparing.paired import Quantity, curves
from mm_lens.comparing.statements import UNTOLD, Measured, Statement
from mm_lens.metrics import METRICS

YES, NO, OPEN = "yes", "no", "cannot be told"
HOLDS, FAILS, UNCLAIMED = "holds", "does not hold", "no claim"
TWO = ("anisotropy", "anisotropy_without_massive")


@cache
def curves_of(label="m", metrics=TWO):
    return curves(label, planted(label, metrics=metrics))


def with_nan(given, field, places):
    """The curves of a model, without some values or errors."""
    out = {}
    for key, curve in given.items():
        values = getattr(curve, field).copy()
        values[places] = np.nan
        out[key] = replace(curve, **{field: values})
    return out


def says(answers, models=1, kind="anisotropy", streams=("residual",), title="Low", **more):
    """A statement that is answered so for each modality, whatever the curves are."""
    seen = more.pop("seen", [])

    def test(given, paired):
        seen.append((given, paired))
        modality = given[0].table.modality.iloc[0]
        answer = answers[modality]
        parts = answer if isinstance(answer, list) else [answer]
        return [
            Measured(f"part {i}", Quantity(2.0 + i, 0.5, 15), 1.5, part, more.get("note", ""))
            for i, part in enumerate(parts)
        ]

    return Statement("key", title, "below 1.5", models, kind, streams, tuple(answers), test)


@pytest.fixture
def found(monkeypatch):
    def run(*statements, given=None, claims=None, architectures=None, paired=True, n_layers=9):
        monkeypatch.setattr(findings, "STATEMENTS", statements)
        given = {"m": curves_of()} if given is None else given
        architectures = architectures or {label: label.upper() for label in given}
        layers = dict.fromkeys(given, n_layers)
        claimed = {"key": claims} if claims else {}
        return find(given, architectures, layers, paired, claimed)

    return run


# ---- verdicts ----


@pytest.mark.parametrize(
    ("answer", "claim", "verdict"),
    [
        (YES, True, HOLDS),
        (NO, True, FAILS),
        (OPEN, True, OPEN),
        (YES, False, FAILS),
        (NO, False, HOLDS),
        (OPEN, False, OPEN),
        (YES, None, UNCLAIMED),
        (NO, None, UNCLAIMED),
        (OPEN, None, UNCLAIMED),
    ],
)
def test_an_answer_and_a_claim_make_a_verdict(found, answer, claim, verdict):
    table = found(says({"visual": answer}), claims=None if claim is None else {("M",): claim})
    assert [*table.answer] == [answer] * 2  # one for each preset
    assert [*table.verdict] == [*table.finding_verdict] == [verdict] * 2
    assert {*table.claimed} == {{True: "yes", False: "no", None: ""}[claim]}


@pytest.mark.parametrize(
    ("visual", "text", "verdict"),
    [
        (YES, YES, HOLDS),
        (YES, NO, FAILS),
        (NO, YES, FAILS),
        (NO, NO, FAILS),
        (YES, OPEN, OPEN),
        (OPEN, YES, OPEN),
        (OPEN, OPEN, OPEN),
        # What is known to fail fails, whatever is open beside it.
        (NO, OPEN, FAILS),
        (OPEN, NO, FAILS),
    ],
)
def test_every_part_of_a_claim_must_hold(found, visual, text, verdict):
    table = found(says({"visual": visual, "text": text}), claims={("M",): True})
    assert {*table.finding_verdict} == {verdict}
    parts = {YES: HOLDS, NO: FAILS, OPEN: OPEN}
    assert [*table.verdict[:2]] == [parts[visual], parts[text]]


def test_a_number_beside_the_answer_has_no_verdict(found):
    table = found(says({"visual": ["", YES]}), claims={("M",): True})
    assert [*table.verdict] == ["", HOLDS] * 2
    assert {*table.finding_verdict} == {HOLDS}
    claimless = found(says({"visual": ["", NO]}))
    assert [*claimless.verdict] == ["", UNCLAIMED] * 2


def test_a_model_without_a_claim_changes_no_verdict(found):
    given = {"m": curves_of("m"), "n": curves_of("n")}
    table = found(says({"visual": YES}), given=given, claims={("M",): True})
    assert [*table.verdict] == [HOLDS, UNCLAIMED] * 2
    assert {*table.finding_verdict} == {HOLDS}


# ---- rows ----


def test_a_row_says_what_was_asked_and_found(found):
    first = says({"visual": YES}, streams=("residual",), title="First")
    second = says({"text": NO}, streams=("main", "residual"), title="Second", note="so")
    table = found(first, second, claims={("M",): True})
    assert tuple(table.columns) == COLUMNS
    order = ["preset", "finding", "stream", "statement", "modality", "answer"]
    rows = [
        (1, "residual", "First", "visual", YES),
        (2, "main", "Second", "text", NO),
        (2, "residual", "Second", "text", NO),
    ]
    presets = ("paper", "honest")
    assert [*table[order].itertuples(index=False, name=None)] == [
        (preset, *row) for preset in presets for row in rows
    ]
    for preset in presets:
        (headline,) = [
            n for n, m in METRICS.items() if m.kind == "anisotropy" and preset in m.headline
        ]
        assert {*table.metric[table.preset == preset]} == {headline}
    row = table.iloc[1]
    assert (row.criterion, row.models, row.quantity, row.threshold, row.note, row.claimed) == (
        "below 1.5",
        "m",
        "part 0",
        1.5,
        "so",
        "yes",
    )
    assert row.value == 2.0
    assert (row.low, row.high) == pytest.approx((2 - T * 0.5, 2 + T * 0.5), rel=1e-4)
    assert table.value.dtype == float


def test_the_test_is_given_the_finite_values_of_the_presets_layers(found):
    given = {"m": with_nan(curves_of(), "value", [4])}
    seen = []
    found(says({"visual": YES}, seen=seen), given=given, paired=False)
    (paper,), (honest,) = (models for models, _ in seen)
    assert [paired for _, paired in seen] == [False, False]
    assert paper.layer.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert honest.layer.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [*paper.table.metric.unique()] == ["anisotropy"]


@pytest.mark.parametrize("paired", [True, False])
def test_the_test_is_told_whether_models_are_paired(found, paired):
    seen = []
    found(says({"visual": YES}, seen=seen), paired=paired)
    assert {told for _, told in seen} == {paired}


@pytest.mark.parametrize(("metric", "arity"), [("anisotropy", 1), ("linearity_paper", 2)])
def test_the_paper_leaves_out_the_first_and_the_last_value(metric, arity):
    curve = curves_of(metrics=(metric,))["main", "text", metric]
    assert layers_of("paper", curve, 9).layer.tolist() == [*range(arity, 9)]
    assert layers_of("honest", curve, 9) is curve


def test_curves_of_a_single_layer(found):
    first = np.arange(10) == 0
    given = {"m": {key: curve.take(first) for key, curve in curves_of().items()}}
    assert len(layers_of("paper", given["m"]["residual", "visual", "anisotropy"], 9).layer) == 0
    table = found(says({"visual": YES}), given=given)
    assert [*table.preset] == ["honest"]
    assert [*table.answer] == [YES]


# ---- what settles nothing ----


@pytest.mark.parametrize("claim", [True, None])
def test_what_was_not_measured_is_said(found, claim):
    """Of one model, beside another that was."""
    given = {"m": curves_of("m"), "n": {}}
    claims = {("N",): True, ("M",): True} if claim else None
    table = found(says({"visual": YES}), given=given, claims=claims)
    rows = table[table.models == "n"]
    assert len(rows) == 2
    for row in rows.itertuples():
        assert (row.quantity, row.answer, row.note) == ("not measured", UNTOLD, "no values")
        assert row.claimed == ("yes" if claim else "")
        assert row.verdict == (OPEN if claim else UNCLAIMED)
        assert math.isnan(row.value)
    assert {*table.finding_verdict} == {OPEN if claim else UNCLAIMED}


@pytest.mark.parametrize("broken", [0, 1])
def test_a_curve_without_any_value_is_not_measured(found, broken):
    """Of either model of a pair."""
    given = {label: curves_of(label) for label in "mn"}
    given["mn"[broken]] = with_nan(given["mn"[broken]], "value", slice(None))
    pair = says({"visual": YES}, models=2)
    assert found(pair, given=given).empty, "a finding without a number is none"
    given["o"], given["p"] = curves_of("o"), curves_of("p")
    table = found(pair, given=given)
    notes = table.groupby("models").note.first()
    known = {models for models, note in notes.items() if note != "no values"}
    assert known == {pair for pair in notes.index if "mn"[broken] not in pair}


def test_one_value_is_enough_to_be_measured(found):
    given = {"m": with_nan(curves_of(), "value", [i for i in range(10) if i != 4])}
    assert {*found(says({"visual": YES}), given=given).quantity} == {"part 0"}


@pytest.mark.parametrize("column", ["value", "rest"])
def test_a_hole_settles_nothing_and_is_named(found, column):
    given = {"m": with_nan(curves_of(), column, [5, 7])}
    for key, curve in given["m"].items():
        why = [f"why {layer:.0f}" for layer in curve.layer]
        given["m"][key] = replace(curve, table=curve.table.assign(warning=why))
    table = found(says({"visual": ["", YES]}, note="so"), given=given, claims={("M",): True})
    said = "no value or interval at layer 5 of m: why 5"
    assert {*table.note} == {said}
    assert table.low.isna().all()
    assert table.high.isna().all()
    assert [*table.answer] == ["", OPEN] * 2
    assert [*table.verdict] == ["", OPEN] * 2


def test_an_interval_that_holds_the_threshold_says_so(found):
    table = found(says({"visual": OPEN}), says({"text": OPEN}, note="so"))
    assert [*table.note] == ["the interval contains 1.5", "the interval contains 1.5; so"] * 2
    assert table.low.notna().all()


@pytest.mark.parametrize("fewer", [0, 1])
def test_counts_of_dimensions_are_compared_at_equal_numbers(found, fewer):
    given = {label: dict(curves_of(label, ("dimension_mle",))) for label in "mn"}
    for key, curve in given["mn"[fewer]].items():
        given["mn"[fewer]][key] = replace(curve, table=curve.table.assign(n_tokens=60))
    for key, curve in given["mn"[1 - fewer]].items():
        given["mn"[1 - fewer]][key] = replace(curve, table=curve.table.assign(n_tokens=900))
    alone = found(says({"visual": YES}, kind="dimension"), given=given)
    assert {*alone.note} == {""}
    table = found(says({"visual": YES}, models=2, kind="dimension"), given=given)
    n = ("60 and 900", "900 and 60")[fewer]
    assert len(table)
    assert table.note.str.startswith(f"on {n} tokens, and counts of dimensions").all()
    assert {*table.answer} == {OPEN}


@pytest.mark.parametrize(
    ("metric", "chance", "settles"),
    [
        ("linearity_paper", 0.5, True),
        ("linearity_paper", 0.51, False),
        ("anisotropy", 0.9, True),  # its chance level is no score of noise
    ],
)
def test_linearity_is_not_used_where_noise_scores_high(found, metric, chance, settles):
    given = {
        "m": {
            key: replace(
                curve, table=curve.table.assign(chance=np.where(curve.layer == 3, chance, 0))
            )
            for key, curve in curves_of(metrics=(metric,)).items()
        }
    }
    table = found(says({"visual": NO}, kind=METRICS[metric].kind), given=given)
    assert {*table.preset} == {"paper"}  # the other preset's metric was not measured
    assert [*table.answer] == ([NO] if settles else [OPEN])
    expected = "" if settles else "noise would score above 0.5 in m: more samples or --tokens"
    assert [*table.note] == [expected]


def test_the_second_model_of_a_pair_can_be_at_fault(found):
    given = {label: curves_of(label) for label in "mn"}
    given["n"] = with_nan(given["n"], "rest", [6])
    table = found(says({"visual": YES}, models=2), given=given)
    assert {*table.answer} == {OPEN}
    assert {*table.models} == {"m − n"}
    assert table.note.str.startswith("no value or interval at layer 6 of n: ").all()


# ---- of whom ----


@pytest.mark.parametrize(
    ("claims", "pairs"),
    [
        (None, ["m − n", "m − o", "n − o"]),
        ({("N", "M"): True}, ["m − o", "n − m", "n − o"]),
        ({("O", "M"): True, ("M", "N"): False}, ["m − n", "n − o", "o − m"]),
    ],
)
def test_pairs_stand_in_the_order_of_the_claim_or_as_given(found, claims, pairs):
    given = {label: curves_of(label) for label in "mno"}
    table = found(says({"visual": YES}, models=2), given=given, claims=claims)
    assert [*table.models[table.preset == "honest"]] == pairs
    claimed = table[table.preset == "honest"].set_index("models").claimed
    words = {True: "yes", False: "no"}
    wanted = {" − ".join(k).lower(): words[v] for k, v in (claims or {}).items()}
    assert {models: word for models, word in claimed.items() if word} == wanted


def test_two_models_of_one_family_are_one_pair(found):
    given = {label: curves_of(label) for label in "zm"}  # not in the order of the alphabet
    architectures = {"z": "X", "m": "X"}
    table = found(says({"visual": YES}, models=2), given=given, architectures=architectures)
    assert [*table.models] == ["z − m"] * 2


def test_claims_of_several_packages_are_taken_together(monkeypatch):
    tables = [
        {"low": {("A",): True}, "high": {("A",): False}},
        {"low": {("B",): False, ("A",): False}},
    ]
    asked = []

    def plugins(group, kind):
        asked.append((group, kind))
        return iter(tables)

    monkeypatch.setattr(findings, "plugins", plugins)
    installed_claims.cache_clear()
    try:
        assert installed_claims() == {
            "low": {("A",): False, ("B",): False},
            "high": {("A",): False},
        }
    finally:
        installed_claims.cache_clear()
    assert asked == [("mm_lens.claims", "Claims")]
