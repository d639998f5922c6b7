"""Fixtures. Types and shapes of every signature are checked while the tests run (see addopts)."""

from __future__ import annotations

import os

import pytest
import torch
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import VisionLanguageBridge

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run in several processes, and start more: threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def load_tiny(**options: object) -> VisionLanguageBridge:
    """A fresh tiny model; `attention`, `check`, or anything `tiny_llava_next` takes."""
    load_options = {k: options.pop(k) for k in ("attention", "check") if k in options}
    model, processor = tiny_llava_next(**options)  # type: ignore[arg-type]
    return mm_lens.load(hf_model=model, processor=processor, **load_options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> VisionLanguageBridge:
    """One tiny sdpa model for a module's tests, which must leave no hook behind."""
    return load_tiny(check=False)


@pytest.fixture
def fresh() -> VisionLanguageBridge:
    """A tiny sdpa model of the test's own."""
    return load_tiny(check=False)


@pytest.fixture(scope="module")
def batch(model: VisionLanguageBridge) -> mm_lens.Inputs:
    """Ragged rows: one image, none, two of odd shapes."""
    return model.prepare(
        ["What is it?", "No picture here.", "Are these two alike?"],
        [random_image(31, 57), None, [random_image(8, 90, 1), random_image(40, 22, 2)]],
    )
