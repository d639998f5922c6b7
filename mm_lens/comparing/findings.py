"""What a paper claims about models, tested on profiles.

A *statement* is a sentence about one model, or about two, that a profile can bear out: "its visual
linearity declines over depth". It is tested for every model, or pair of models, that is compared,
with the metrics of each preset. What some paper *claims* is a table of statements by family, kept
where the families are and found through the entry point group `mm_lens.claims`: this module names
no family. Where nothing is claimed, the statement is still measured.

A finding is a claim about one or more models in one stream: it holds if every part of it does, does
not hold if some part does not, and otherwise "cannot be told". Where a value is missing or rests on
too few tokens, nothing can be told: such a number has no interval, and `note` says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from mm_lens.comparing.equal_numbers import Curves, at_equal_numbers
from mm_lens.comparing.paired import Curve
from mm_lens.comparing.statements import STATEMENTS, UNTOLD, Statement
from mm_lens.metrics import METRICS
from mm_lens.plugins import plugins

GROUP = "mm_lens.claims"
HOLDS, FAILS, UNCLAIMED = "holds", "does not hold", "no claim"
NOISE = 0.5
"""In-sample R² is not used where independent noise would score more than this."""
COLUMNS = (
    "preset",
    "finding",
    "stream",
    "statement",
    "criterion",
    "models",
    "modality",
    "metric",
    "quantity",
    "value",
    "low",
    "high",
    "threshold",
    "answer",
    "claimed",
    "verdict",
    "finding_verdict",
    "note",
)

Claims = Mapping[str, Mapping[tuple[str, ...], bool]]
"""By key of a statement, then by the architectures it is about: whether it is claimed to be so."""


@cache
def installed_claims() -> Claims:
    """What the installed families say that papers claim about them."""
    found: dict[str, dict[tuple[str, ...], bool]] = {}
    for table in plugins(GROUP, "Claims"):
        for key, entries in table.items():
            found.setdefault(key, {}).update(entries)
    return found


def layers_of(preset: str, curve: Curve, n_layers: int) -> Curve:
    """The layers that a preset looks at.

    The figures of the paper leave out the first and the last state (or pair of states).
    """
    if preset != "paper":
        return curve
    first = METRICS[str(curve.table.metric.iloc[0])].arity
    return curve.take((curve.layer >= first) & (curve.layer < n_layers))


def find(
    curves: Mapping[str, Mapping[tuple[str, ...], Curve]],
    architectures: Mapping[str, str],
    n_layers: Mapping[str, int],
    paired: bool,
    claims: Claims,
) -> pd.DataFrame:
    """Test every statement on every model, or pair of models, in every preset.

    Args:
        curves: of each model, by stream, modality and metric.
        architectures: of each model: what claims go by.
        n_layers: of each model.
        paired: whether the models were shown the same documents.
        claims: what is claimed of whom.

    Returns:
        One row per number, with the columns `COLUMNS`.
    """
    rows: list[dict[str, Any]] = []
    for preset in ("paper", "honest"):
        for number, statement in enumerate(STATEMENTS, 1):
            claimed = claims.get(statement.key, {})
            metric = _headline(statement.kind, preset)
            for stream in statement.streams:
                found = [
                    {
                        "preset": preset,
                        "finding": number,
                        "stream": stream,
                        "statement": statement.title,
                        "criterion": statement.criterion,
                        "metric": metric,
                        **row,
                    }
                    for models, claim in _subjects(statement.models, architectures, claimed)
                    for modality in statement.modalities
                    for row in _test(
                        statement,
                        *_curves_of(preset, models, curves, n_layers, (stream, modality, metric)),
                        models,
                        modality,
                        claim,
                        paired,
                    )
                ]
                if any(row["value"] is not None for row in found):
                    verdict = _combine([row["verdict"] for row in found])
                    rows += [{**row, "finding_verdict": verdict} for row in found]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def _curves_of(
    preset: str,
    models: Sequence[str],
    curves: Mapping[str, Curves],
    n_layers: Mapping[str, int],
    key: tuple[str, str, str],
) -> tuple[list[Curve], str]:
    """The curve of each model that has one, and why two of them cannot be compared."""
    found, problem = [curves[m][key] for m in models if key in curves[m]], ""
    if len(models) == len(found) == 2:
        (a, b), (of_a, of_b) = found, (curves[m] for m in models)
        a, b, problem = at_equal_numbers(a, b, of_a, of_b, key)
        found = [a, b]
    labelled = zip(models, found, strict=False)
    return [layers_of(preset, curve, n_layers[m]) for m, curve in labelled], problem


def _headline(kind: str, preset: str) -> str:
    return next(name for name, m in METRICS.items() if m.kind == kind and preset in m.headline)


def _subjects(
    count: int, architectures: Mapping[str, str], claimed: Mapping[tuple[str, ...], bool]
) -> Iterator[tuple[tuple[str, ...], bool | None]]:
    """The models, or pairs of models, in the order in which something is claimed of them."""
    order = {label: i for i, label in enumerate(architectures)}
    for models in permutations(architectures, count):
        key = tuple(architectures[m] for m in models)
        if key in claimed:
            yield models, claimed[key]
        elif key[::-1] not in claimed and [*models] == sorted(models, key=order.__getitem__):
            yield models, None


def _test(
    statement: Statement,
    curves: Sequence[Curve],
    problem: str,
    models: tuple[str, ...],
    modality: str,
    claim: bool | None,
    paired: bool,
) -> Iterator[dict[str, Any]]:
    common = {
        "models": " − ".join(models),
        "modality": modality,
        "claimed": "" if claim is None else "yes" if claim else "no",
    }
    if len(curves) < len(models) or not all(np.isfinite(c.value).any() for c in curves):
        yield {
            **common,
            "quantity": "not measured",
            "value": None,
            "answer": UNTOLD,
            "verdict": UNCLAIMED if claim is None else UNTOLD,
            "note": "no values",
        }
        return
    problem = problem or _problem(curves)
    for found in statement.test([c.take(np.isfinite(c.value)) for c in curves], paired):
        answer = UNTOLD if problem and found.answer else found.answer
        if not answer:
            verdict = ""
        elif claim is None:
            verdict = UNCLAIMED
        else:
            verdict = UNTOLD if answer == UNTOLD else HOLDS if (answer == "yes") == claim else FAILS
        reason = ""
        if answer == UNTOLD and found.quantity.known:
            reason = f"the interval contains {found.threshold:g}"
        yield {
            **common,
            "quantity": found.what,
            "value": found.quantity.value,
            "low": math.nan if problem else found.quantity.low,
            "high": math.nan if problem else found.quantity.high,
            "threshold": found.threshold,
            "answer": answer,
            "verdict": verdict,
            "note": problem or "; ".join(text for text in (reason, found.note) if text),
        }


def _problem(curves: Sequence[Curve]) -> str:
    """Why these values decide nothing; "" if they may."""
    for curve in curves:
        missing = curve.table[~np.isfinite(curve.value) | ~np.isfinite(curve.rest)]
        if len(missing):
            row = missing.iloc[0]
            return f"no value or interval at layer {row.layer} of {curve.model}: {row.warning}"
        known = METRICS[str(curve.table.metric.iloc[0])]
        if known.kind == "linearity" and (curve.table.chance > NOISE).any():
            return f"noise would score above {NOISE} in {curve.model}: more samples or --tokens"
    return ""


def _combine(verdicts: Sequence[str]) -> str:
    """All parts of a claim must hold."""
    for verdict in (FAILS, UNTOLD, HOLDS):
        if verdict in verdicts:
            return verdict
    return UNCLAIMED
