"""Tiny models of all families, and a profile, to be drawn."""

from __future__ import annotations

import pytest
from conftest import load_tiny
from drawn_profiles import make_profile


@pytest.fixture(scope="module")
def profile():
    return make_profile()


@pytest.fixture(scope="module")
def each(family):
    """Tiny models of all families, for what is drawn on the image."""
    return load_tiny(family, check=False)
