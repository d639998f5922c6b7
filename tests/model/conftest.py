"""One prompt with one image."""

from __future__ import annotations

import pytest
from tiny import random_image


@pytest.fixture(scope="module")
def one(model):
    return model.prepare("What is it?", random_image(31, 57))
