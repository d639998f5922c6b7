"""Questions about some pictures, and other pictures to fit on."""

from __future__ import annotations

import pytest
from made_questions import ask


@pytest.fixture(scope="module")
def samples(model):
    return ask(model, range(4))


@pytest.fixture(scope="module")
def others(model):
    return [inputs for inputs, _ in ask(model, range(10, 20))]
