"""The shipped models, and the fusions they were built by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built_demos import NAMES
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo_training import train
from demo_training.fusion import Fusion
from demo_training.fusions import FUSIONS
from mm_lens import demo
from mm_lens.model.families import families


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    families()
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    return demo.path(f"demo/{name}")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def built(name: str) -> Fusion:
    return FUSIONS[name](train.tokenizer())
