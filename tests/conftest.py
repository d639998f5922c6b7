"""Fixtures. Types and shapes of every signature are checked while the tests run (see addopts)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import before_transformers  # noqa: F401  torchvision, where it is
import pytest
import quick_boot  # noqa: F401  half of what it takes to make a bridge
import torch
import typecheck
from tiny import random_image, tiny_llava_next
from tiny_omnifusion import tiny_omnifusion

import mm_lens
from mm_lens import VisionLanguageBridge

# Fixtures that tests of several folders use.
pytest_plugins = ["disturbed_runs", "fake_hub", "made_comparisons", "published_files"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run in several processes, and start more: threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: begun last, they would leave one of two workers idle."""
    items.sort(key=lambda item: "test_tutorial_runs" not in item.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The first calls of every test have their types checked."""
    typecheck.check_anew()


FAMILIES = {"llava-next": tiny_llava_next, "omnifusion": tiny_omnifusion}


def load_tiny(
    family: str = "llava-next", dtype: torch.dtype = torch.float32, **options: object
) -> VisionLanguageBridge:
    """A fresh tiny model; `attention`, `check`, or anything the family's builder takes."""
    load_options = {k: options.pop(k) for k in ("attention", "check") if k in options}
    model, processor = FAMILIES[family](**options)  # type: ignore[operator]
    model.to(dtype)
    return mm_lens.load(hf_model=model, processor=processor, **load_options)  # type: ignore[arg-type]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `every_family` run once with each of `FAMILIES`."""
    marked = metafunc.definition.get_closest_marker("every_family")
    if marked and "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """The family of `model`, `native` and `fresh`: LLaVA-NeXT, or each where a test says so.

    `pytestmark = pytest.mark.every_family` says it for a file, the mark alone for a test.
    """
    return getattr(request, "param", "llava-next")


@pytest.fixture(scope="module")
def native(family: str) -> torch.nn.Module:
    """The native model, untouched."""
    return FAMILIES[family]()[0]


@pytest.fixture(scope="module")
def model(family: str) -> VisionLanguageBridge:
    """One tiny sdpa model for a module's tests, which must leave no hook behind."""
    return load_tiny(family, check=False)


@pytest.fixture
def fresh(family: str) -> VisionLanguageBridge:
    """A tiny sdpa model of the test's own."""
    return load_tiny(family, check=False)


@pytest.fixture(scope="module")
def batch(model: VisionLanguageBridge) -> mm_lens.Inputs:
    """Ragged rows: one image, none, two of odd shapes."""
    return model.prepare(
        ["What is it?", "No picture here.", "Are these two alike?"],
        [random_image(31, 57), None, [random_image(8, 90, 1), random_image(40, 22, 2)]],
    )


class Float64Torch:
    """`torch` as the models' code sees it: what it rounds to float32 on the way, it does not."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def _no_float32() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            of_models = name.startswith(("transformers.models.", "transformer_lens.model_bridge."))
            if of_models and getattr(module, "torch", None) is torch:
                patch.setattr(module, "torch", Float64Torch())
        yield


@pytest.fixture
def no_float32():
    """Softmax and norms, which models compute in float32 whatever their dtype, in float64."""
    with _no_float32():
        yield


@pytest.fixture(scope="module")
def no_float32_in_module():
    """As `no_float32`, for what a file's fixtures compute as well."""
    with _no_float32():
        yield
