"""What callers give, checked where it comes in: an error that says what is meant, before torch's or
Python's own says what went wrong further down."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from mm_lens.errors import HookError, InputError

SHOWN = 60
"""Characters of a value that a message shows."""


def describe_value(value: Any) -> str:
    """Kind and beginning of a value, for a message."""
    shown = repr(value)
    cut = shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "…"
    return f"{type(value).__name__} {cut}"


def suggest(name: Any, known: Iterable[str]) -> str:
    """The end of a message about a name that there is not: which is meant, if one is like it."""
    near = difflib.get_close_matches(str(name), [*known], 1, 0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def require_kind(name: str, value: Any, kinds: type | tuple[type, ...], meant: str) -> None:
    """Refuse a value of another kind.

    Args:
        name: of the argument.
        value: what was given.
        kinds: its class, or several.
        meant: what is meant, as "what model.prepare(text, images) returns".

    Raises:
        InputError: naming all of them.
    """
    if not isinstance(value, kinds):
        raise InputError(
            f"An argument is of another kind: {name} is {meant}, not {describe_value(value)}."
        )


def require_whole(name: str, value: Any, least: int | None = None) -> int:
    """The value as a Python number; truth values are none.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that makes sense; None: any.

    Raises:
        InputError: it is no whole number, or too small.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None:
        raise InputError(f"{name} is a whole number, not {describe_value(value)}.")
    if least is not None and number < least:
        raise InputError(f"{name}={number} is too small. Give at least {least}.")
    return number


def resolve_numbers(name: str, what: str, asked: Any, count: int) -> tuple[int, ...]:
    """Numbers of layers or heads counted from the front, in the order in which they were asked for.

    Args:
        name: of the argument.
        what: one of them, as "layer".
        asked: the numbers, negative ones from the end (-1 is the last); None takes all.
        count: how many there are.

    Raises:
        InputError: there is none, one is no whole number or is named twice, or there is no such.
    """
    if asked is None:
        return tuple(range(count))
    try:
        numbers = [require_whole(what, number) for number in asked]
    except (TypeError, InputError) as error:
        raise InputError(
            f"{name} is a list of numbers of {what}s, as [0, 5] or range(4, 8), not {asked!r}."
        ) from error
    if not numbers:
        raise InputError(f"{name} names no {what}. Leave it out to take all.")
    if wrong := [number for number in numbers if not -count <= number < count]:
        raise InputError(
            f"There is no {what} {wrong[0]}: there are {count}, 0 to {count - 1} (or -{count} to "
            "-1 from the end)."
        )
    found = tuple(number % count for number in numbers)
    if len({*found}) < len(found):
        raise InputError(f"A {what} is named twice in {name}{numbers} of {count}. Name each once.")
    return found


def resolve_rows(rows: Any, batch: int) -> list[int]:
    """Numbers of rows of a batch, counted from the front; they may repeat.

    Args:
        rows: the numbers, negative ones from the end, or truth values for all rows in an array.
        batch: how many rows there are.

    Raises:
        InputError: there is no such row.
    """
    if "bool" in str(getattr(rows, "dtype", "")):
        if tuple(rows.shape) != (batch,):
            raise InputError(f"A mask of rows {tuple(rows.shape)} does not fit a batch of {batch}.")
        rows = [row for row, taken in enumerate(rows.tolist()) if taken]
    numbers = [require_whole("A row", row) for row in rows]
    if wrong := [row for row in numbers if not -batch <= row < batch]:
        raise InputError(f"There is no row {wrong[0]} in a batch of {batch}.")
    return [row % batch for row in numbers]


_PAIRS = 'Hooks are a list of pairs, as [("blocks.3.visual.hook_resid_post", function)]'


def check_hooks(hooks: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """Hooks as TransformerLens takes them: pairs of a name, or a filter of names, and a function.

    Raises:
        HookError: there is something else among them, or a function that takes other arguments.
    """
    if isinstance(hooks, str) or not isinstance(hooks, Iterable):
        raise HookError(f"{_PAIRS}, not {describe_value(hooks)}.")
    pairs = list(hooks)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise HookError(f"{_PAIRS}; {describe_value(pair)} is none.")
        name, function = pair
        if not isinstance(name, str) and not callable(name):
            raise HookError(
                f"A hook goes to a name or a filter of names, not {describe_value(name)}."
            )
        if not callable(function):
            raise HookError(f"A hook is a function, not {describe_value(function)}. {_PAIRS}.")
        try:
            inspect.signature(function).bind(None, hook=None)
        except TypeError as error:
            raise HookError(
                f"A hook is called as function(tensor, hook=point), and {describe_value(function)} "
                f"cannot be: {error}."
            ) from error
        except ValueError:  # one of C, which does not say what it takes
            continue
    return pairs


_VIEW = re.compile(r"blocks\.(\d+)\.(visual|text)\.|blocks\.(\d+)\.hook_(visual|text)_")


def check_reached(names: Iterable[Any], stop_at_layer: int | None, n_layers: int) -> None:
    """Refuse hooks per modality in blocks that a pass does not come to: they would do nothing.

    Those of the full stream are TransformerLens's, which passes over them.

    Raises:
        HookError: naming the first.
    """
    if stop_at_layer is None:
        return
    end = stop_at_layer if stop_at_layer >= 0 else stop_at_layer + n_layers
    for name in names:
        view = _VIEW.match(name) if isinstance(name, str) else None
        if view and end <= int(view[1] or view[3]) < n_layers:
            raise HookError(
                f"{name} lies behind stop_at_layer={stop_at_layer}: the hook would do nothing."
            )


def require_filter(name: str, value: Any) -> None:
    """Refuse what is no function of a name.

    Raises:
        InputError: naming what is meant.
    """
    if not callable(value):
        raise InputError(
            f"{name} is the name of a hook point, a list of names, or a function of a name as "
            f'mm_lens.names("resid_post"), not {describe_value(value)}.'
        )


def require_number(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Refuse what is no number from `low` to `high`; NaN is none.

    Raises:
        InputError: naming the range.
    """
    try:
        fits = not isinstance(value, bool) and low <= value <= high
    except TypeError:
        fits = False
    if not fits:
        most = "" if high == float("inf") else f" to {high:g}"
        raise InputError(f"{name} is a number from {low:g}{most}, not {describe_value(value)}.")


def check_return_type(asked: Any) -> Any:
    """Refuse a picture where `model(…)` takes `return_type`; gives it back.

    Raises:
        InputError: saying how text and picture go together.
    """
    if asked is not None and not isinstance(asked, str):
        raise InputError(
            f"The second argument of model(…) is return_type, a text, not {describe_value(asked)}. "
            "Text and picture go together: model(model.prepare(text, picture)) gives logits, "
            "model.ask(text, picture) an answer."
        )
    return asked


def check_name(name: Any) -> None:
    """Refuse what can be neither a directory nor a name of the hub.

    Raises:
        InputError: naming it.
    """
    if not isinstance(name, str | PathLike) or not fspath(name):
        raise InputError(
            f"name_or_path is a hub id, a directory or a demo model, not {describe_value(name)}. A "
            "loaded model is passed as hf_model=."
        )
    text = fspath(name)
    looks_local = isinstance(name, PathLike) or text[0] in "/.~" or text.count("/") > 1
    looks_local = looks_local or text.endswith("/")
    if looks_local and not Path(text).is_dir():
        raise InputError(
            f"There is no directory {text}, and it is no hub id (organisation/model)."
            f"{suggest_directory(text)}"
        )


def suggest_directory(name: str) -> str:
    """The end of a message about a directory that is not there: one beside it of a like name."""
    place = Path(name)
    try:
        beside = [path.name for path in place.parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(place.name, beside, 1, 0.6)
    return f" Did you mean {str(place.parent / near[0])!r}?" if near else ""
