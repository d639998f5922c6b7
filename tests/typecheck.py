"""How signatures are checked while the tests run (see addopts): as mypy reads them.

Of each function the first calls of every test are checked (`CALLS`): checking all of them makes
what is called for each hook and layer four times as slow, and the thousandth call has the types of
the first. jaxtyping's decorator looks at the arguments twice and binds them to the signature first,
for the wording of its message; here arguments and result are looked at in one go, in one frame of
axis names. A function that is never called is never decorated. The same holds for what makes the
objects of a data class: of forty thousand rows of a data set the first ones are checked.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping._storage import pop_shape_memo, push_shape_memo

CALLS = 20
INNER_CALLS = 5
"""Of functions within functions: each is made anew, and its check as well."""

DEFAULT_FACTORY = type(dataclasses._HAS_DEFAULT_FACTORY)  # type: ignore[attr-defined]
"""Of what stands in a signature for "what the factory of this field makes"."""

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is a float."""

_thorough = jaxtyping.jaxtyped
_counts: dict[CodeType, list[int]] = {}
"""How many calls are still to be checked, and of how many; by code, for functions made anew."""


def check_anew() -> None:
    """Forget what was checked, as at the beginning of each test (conftest.py)."""
    for left in _counts.values():
        left[0] = left[1]


def _evaluate(function: FunctionType) -> dict[str, Any]:
    """Annotations that can be evaluated here; the others name what is imported for mypy alone."""
    found = {}
    for name, hint in function.__annotations__.items():
        one = SimpleNamespace(__annotations__={name: hint})
        with suppress(NameError, TypeError):
            found |= get_type_hints(one, function.__globals__, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in found and isinstance(parameter.default, DEFAULT_FACTORY):
            found[name] = found[name] | DEFAULT_FACTORY
    return found


def _checked(function: FunctionType) -> Callable[..., Any]:
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__, copied.__annotations__ = function.__kwdefaults__, _evaluate(function)
    copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
    return check(copied)


def jaxtyped(thing: Any = None, *, typechecker: Any = None) -> Any:
    """In place of jaxtyping's decorator of that name."""
    if thing is None:
        return partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(thing) and isinstance(thing, type):
        if not hasattr(thing.__init__, "__wrapped__"):  # by its base, or written by hand
            thing.__init__ = jaxtyped(thing.__init__)  # type: ignore[method-assign]
        return thing
    if not isinstance(thing, FunctionType) or inspect.isgeneratorfunction(thing):
        return _thorough(thing, typechecker=typechecker)
    if not thing.__annotations__:
        return thing
    calls = INNER_CALLS if "<locals>" in thing.__qualname__ else CALLS
    left, checked = _counts.setdefault(thing.__code__, [calls, calls]), None

    @wraps(thing)
    def in_frame(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if left[0] <= 0:
            return thing(*args, **kwargs)
        nonlocal checked
        checked = checked or _checked(thing)
        left[0] -= 1
        push_shape_memo({})
        try:
            return checked(*args, **kwargs)
        finally:
            pop_shape_memo()

    return in_frame


# What jaxtyping's import hook writes above each function and class is `@jaxtyping.jaxtyped(…)`.
jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
