"""pytest plugin of `make mutants`: which tests a mutant has to get past.

mutmut runs the tests in a process that has imported everything, and forks from it for each mutant.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook
from mutmut.state import state

# Imported once, before the tests, in place of --jaxtyping-packages: see pyproject.toml.
install_import_hook(["mm_lens", "mm_lens_adapters"], "typecheck.check")


def pytest_sessionstart() -> None:
    """Leave what is imported out of garbage collection, which would copy it for each mutant."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    """Note what a shared fixture calls: mutmut would count it for the first test alone."""
    hits = state()._stats
    before = set(hits)
    hits.clear()
    try:
        return (yield)
    finally:
        fixturedef.mutation_hits = set(hits)
        hits |= before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Hold a module to its own tests: tests/layout/test_regions.py to mm_lens/layout/regions.py."""
    hits = state()._stats
    for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
        hits |= getattr(definitions[-1], "mutation_hits", set())
    path = Path(item.path)
    module = f"mm_lens.{path.parent.name}.{path.stem.removeprefix('test_')}."
    hits -= {name for name in hits if not name.startswith(module)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickest first: most mutants fail the first test that runs them."""
    took = state().duration_by_test
    items.sort(key=lambda item: took.get(item.nodeid, 0.0))
