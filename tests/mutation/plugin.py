"""pytest plugin of `make mutants`: which tests a mutant has to get past, and how quickly.

mutmut runs the tests in a process that has imported everything, and forks from it for each mutant.
What the parent has made serves the forks as well: the collected tests, and shared models.
"""

from __future__ import annotations

import gc
import inspect
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.tmpdir import TempPathFactory
from jaxtyping import install_import_hook
from mutmut.mutation import trampoline
from mutmut.mutation.trampoline import get_mutant_under_test, set_mutant_under_test
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd

# Imported once, before the tests, in place of --jaxtyping-packages: see pyproject.toml.
install_import_hook(["mm_lens", "mm_lens_adapters"], "typecheck.check")

wrap_checked = trampoline.wrap_in_trampoline


class Unchecked(dict[str, Any]):
    """The mutants of a function, without the checks of types around each."""

    def __init__(self, mutants: dict[str, Any]) -> None:
        super().__init__()
        self.mutants = mutants  # filled later

    def __missing__(self, name: str) -> Any:
        return inspect.unwrap(self.mutants[name])

    def get(self, name: str, default: Any = None) -> Any:
        """Of this name; None if it is a mutant of another function."""
        return self[name] if name in self.mutants else default


def wrap_in_trampoline(mutants: dict[str, Any], **options: Any) -> Callable[..., Any]:
    """As mutmut's, but `inspect.unwrap` takes off the checks of types alone, not the mutant."""

    def wrap(function: Callable[..., Any]) -> Any:
        wrapped = wrap_checked(mutants, **options)(function)
        plain: Any = wrap_checked(Unchecked(mutants), **options)(inspect.unwrap(function))
        plain.__signature__ = inspect.signature(function)
        del plain.__wrapped__
        vars(wrapped)["__wrapped__"] = plain
        return wrapped

    return wrap


trampoline.wrap_in_trampoline = wrap_in_trampoline  # type: ignore[assignment]

ALSO = {"knockout": ("cutting",), "masks": ("cutting",)}
"""Whose tests a file holds as well: what a knock-out cuts is seen in the model that is cut."""

STUCK = 600
"""Seconds after which a mutant is ended that is over its time and waits instead of computing."""

made: dict[tuple[Any, ...], tuple[Any, set[str]]] = {}
"""What shared fixtures returned when nothing was mutated, and the functions that this took."""


def end_if_spent(signum: int, frame: Any) -> None:
    """Tell a loop from a busy machine: mutmut's limit is of the clock, this one of the processor.

    A mutant that is ended here counts as killed (a timeout); one that waits for ever does not.
    """
    if time.process_time() >= resource.getrlimit(resource.RLIMIT_CPU)[0]:
        os._exit(36)
    signal.alarm(STUCK)


signal.signal(signal.SIGXCPU, end_if_spent)


collected: dict[str, pytest.Item] = {}
"""The tests of the last whole run, by name."""


class Verdict:
    """Whether a test has failed; said aloud if nothing is mutated."""

    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See `failed`."""
        if report.failed:
            self.failed = True
            if not get_mutant_under_test():
                os.write(2, f"{report.nodeid}\n{report.longreprtext}\n".encode())


start_pytest = PytestRunner.run_tests


def run_collected(tests: Iterable[str]) -> int:
    """Run tests up to the first that fails, without starting pytest anew: that takes longer.

    Returns:
        Exit code, as mutmut reads it.
    """
    items, verdict = [collected[name] for name in tests], Verdict()
    manager = items[0].config.pluginmanager
    for name in ("terminalreporter", "capturemanager"):  # of a session that is over
        if manager.has_plugin(name):
            manager.unregister(name=name)
    manager.register(verdict)
    config = items[0].config  # over, and its folders for tests with it
    vars(config)["_tmp_path_factory"] = TempPathFactory.from_config(config, _ispytest=True)
    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if verdict.failed:
                return 1
    except (KeyboardInterrupt, pytest.exit.Exception):  # got out of a test
        return 1
    except BaseException:  # of what is above, and no fault of the mutant
        os.write(2, traceback.format_exc().encode())
        return 35
    return 0


def run_tests(self: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
    """Run what is collected, mutated or not; only that all fails if it has to, pytest shows."""
    if get_mutant_under_test() == "fail" or not collected:
        return start_pytest(self, mutant_name=mutant_name, tests=tests)
    with change_cwd("mutants"):
        return run_collected(tests or collected)


PytestRunner.run_tests = run_tests  # type: ignore[method-assign]


def pytest_sessionstart() -> None:
    """Leave what is imported out of garbage collection, which would copy it for each mutant."""
    gc.freeze()


def _identify(fixturedef: Any, request: Any) -> tuple[Any, ...] | None:
    """What the value of a fixture follows from; None if each mutant has to make its own."""
    if (
        fixturedef.scope not in ("module", "session")
        or inspect.isgeneratorfunction(fixturedef.func)
        or fixturedef.argname == "tmp_path_factory"
        or get_mutant_under_test() == "fail"
    ):
        return None
    parts: list[Any] = [fixturedef.func, repr(getattr(request, "param", None))]
    kept = {id(value) for value, _ in made.values()}
    for name in fixturedef.argnames:
        value = None if name == "request" else request.getfixturevalue(name)
        if not isinstance(value, str | None) and id(value) not in kept:
            return None
        parts.append(value if isinstance(value, str) else id(value))
    return tuple(parts)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Any:
    """Hand out a model that earlier mutants used as well, unless this one is on its way.

    Tests of a file share it anyway and leave it as it was.
    """
    value, called = made.get(_identify(fixturedef, request) or (), (None, set()))
    fixturedef.mutation_hits = called
    if value is None or get_mutant_under_test().partition("__mutmut_")[0] in called:
        return None  # pytest makes it
    fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
    return value


@pytest.hookimpl(wrapper=True, specname="pytest_fixture_setup")
def note_fixture(fixturedef: Any, request: Any) -> Iterator[Any]:
    """Note what a fixture calls: mutmut would count it for the first test alone."""
    mutant, hits = get_mutant_under_test(), state()._stats
    before = set(hits)
    if mutant in ("", "stats"):
        hits.clear()
        set_mutant_under_test("stats")
    try:
        value = yield
    finally:
        if mutant in ("", "stats"):
            set_mutant_under_test(mutant)
            fixturedef.mutation_hits |= hits
            hits |= before
    if mutant in ("", "stats") and (key := _identify(fixturedef, request)):
        made.setdefault(key, (value, set(fixturedef.mutation_hits)))
    return value


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Hold a module to its own tests: tests/layout/test_regions.py to mm_lens/layout/regions.py."""
    hits = state()._stats
    for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
        hits |= getattr(definitions[-1], "mutation_hits", set())
    path = Path(item.path)
    own = path.stem.removeprefix("test_")
    modules = tuple(f"mm_lens.{path.parent.name}.{name}." for name in (own, *ALSO.get(own, ())))
    hits -= {name for name in hits if not name.startswith(modules)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quickest first: most mutants fail the first test that runs them."""
    took = state().duration_by_test
    items.sort(key=lambda item: took.get(item.nodeid, 0.0))
    if len(items) >= len(collected):
        collected.update((item.nodeid, item) for item in items)
