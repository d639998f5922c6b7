"""Tests stand where their module stands: `mm_lens/a/b.py` is tested in `tests/a/test_b.py`.

What departs from it is a row of one of two tables, with its reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
MIRRORED = {
    ROOT / "mm_lens": TESTS,
    ROOT / "adapters" / "mm_lens_adapters": TESTS / "adapters",
    ROOT / "demo_training": TESTS / "demo_training",
}

MODULES_WITHOUT_TESTS = {}
"""Modules without a test file of their name: where they are tested, and why there."""

TESTS_WITHOUT_MODULE = {}
"""Test files that no module answers to: what they test."""


def defines_something(package: Path) -> bool:
    """Whether an `__init__` does more than export names."""
    body = ast.parse(package.read_text()).body
    return any(
        isinstance(part, ast.ClassDef)
        or (isinstance(part, ast.FunctionDef) and part.name not in ("__dir__", "__getattr__"))
        for part in body
    )


def expected_tests() -> dict[str, str]:
    """Path of each module → path of the test file of its name, both below the root."""
    found = {}
    for source, tests in MIRRORED.items():
        for module in sorted(source.rglob("*.py")):
            place = module.relative_to(source)
            if module.stem.startswith("__"):
                if module.stem != "__init__" or not defines_something(module):
                    continue
                # A package that defines something is tested beside its folder.
                place = place.parent.with_suffix(".py")
            test = tests / place.parent / f"test_{place.name.lstrip(chr(95))}"
            found[module.relative_to(ROOT).as_posix()] = test.relative_to(ROOT).as_posix()
    return found


def present_tests() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in TESTS.rglob("test_*.py")}


def test_every_module_has_a_test_file_of_its_name_or_a_reason():
    tests = present_tests()
    missing = {module for module, test in expected_tests().items() if test not in tests}
    assert missing - set(MODULES_WITHOUT_TESTS) == set()
    assert set(MODULES_WITHOUT_TESTS) - missing == set(), "no longer exceptions"


def test_every_test_file_has_its_module_or_a_reason():
    loose = present_tests() - set(expected_tests().values())
    assert loose - set(TESTS_WITHOUT_MODULE) == set()
    assert set(TESTS_WITHOUT_MODULE) - loose == set(), "no longer exceptions"


def test_reasons_name_files_that_exist():
    for reason in [*MODULES_WITHOUT_TESTS.values(), *TESTS_WITHOUT_MODULE.values()]:
        assert len(reason.split()) > 2
        for word in reason.replace(",", " ").replace(";", " ").split():
            if "/" in word or word.endswith((".py", ".md")):
                assert (ROOT / word).exists(), reason
