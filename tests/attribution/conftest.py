"""A pair of models for each family."""

from __future__ import annotations

import pytest
from attribution_cases import Case


@pytest.fixture(scope="module")
def case(family):
    return Case(family)
