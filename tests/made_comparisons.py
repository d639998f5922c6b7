"""Profiles with planted findings, of a model with tiles and of one without, and their comparison.

A plugin of conftest.py: the fixture is every test's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_profiles import TILED, WHOLE, planted

import mm_lens

# What the paper says: the shapes of both models that make all of its findings hold.
TILED_SHAPES = {"linearity": lambda x: 0.99 - 0.05 * x, "dimension": 8.0, "anisotropy": 0.9}


WHOLE_SHAPES = {"linearity": 0.98, "dimension": lambda x: 9 + x, "anisotropy": 0.2}


def tiled(shapes=None, **options):
    return planted("demo/tiled", TILED, {**TILED_SHAPES, **(shapes or {})}, **options)


def whole(shapes=None, **options):
    return planted("demo/whole", WHOLE, {**WHOLE_SHAPES, **(shapes or {})}, seed=1, **options)


def verdicts(comparison, finding, preset=None, stream=None):
    rows = comparison.findings[comparison.findings.finding == finding]
    rows = rows[rows.preset == preset] if preset else rows
    rows = rows[rows.stream == stream] if stream else rows
    return {*rows.finding_verdict}


def with_cells(profile, condition, **values):
    """The profile with some cells of its table changed."""
    table = profile.table.copy()
    table.loc[condition(table), [*values]] = [*values.values()]
    return replace(profile, table=table)


@pytest.fixture(scope="module")
def comparison():
    return mm_lens.compare(tiled(), whole())
