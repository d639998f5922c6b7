"""Models that have attention patterns."""

from __future__ import annotations

import pytest
from conftest import load_tiny


@pytest.fixture(scope="module")
def eager(family):
    return load_tiny(family, attention="eager", check=False)
