"""Whether a configuration describes a model, found out without paying for one.

The model is built on torch's meta device, where weights have shapes and no numbers. That validates
a configuration as a whole: every class looks at its part of it. What is built is counted on the
way, since a few characters of a configuration stand for any number of layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from mm_lens.errors import InputError, MMLensError, lacks_memory

MAX_LAYERS = 10_000
"""Most layers that a configuration may name."""
MAX_MODULES = 50_000
"""Most modules of a model; a mixture of 128 experts in 60 layers has some 30,000."""


def check_entries(config: Any, where: str) -> None:
    """Refuse a configuration whose numbers of layers no model has, before any code reads it.

    Raises:
        InputError: naming the entry.
    """
    for name, value in _entries(config, ""):
        named = name.rpartition(".")[2]
        if ("layer" in named or "depth" in named) and abs(value) > MAX_LAYERS:
            raise InputError(
                f"{where}: {name} is {value:,}, more than the {MAX_LAYERS:,} layers of any model. "
                "Get the file again, or raise mm_lens.checkpoints.building.MAX_LAYERS."
            )


def _entries(config: Any, name: str) -> Iterator[tuple[str, int]]:
    """Every whole number in nested objects and lists, with the names that lead to it."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _entries(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _entries(value, name)
    elif isinstance(config, (int, float)) and not isinstance(config, bool):
        yield name, config  # type: ignore[misc]


@contextmanager
def empty_model(where: str) -> Iterator[None]:
    """In this block models are built without numbers, and counted.

    Raises:
        InputError: building one fails, or it has more than `MAX_MODULES` modules.
    """
    thread, count = threading.get_ident(), 0

    def register(*_: object) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > MAX_MODULES:
                raise InputError(
                    f"{where} describes a model of more than {MAX_MODULES:,} modules. Get the file "
                    "again, or raise mm_lens.checkpoints.building.MAX_MODULES."
                )

    handle = register_module_module_registration_hook(register)
    try:
        with torch.device("meta"):
            yield
    except InputError:
        raise
    except Exception as error:  # each class of a model says in its own way what it cannot be
        if lacks_memory(error):
            raise
        raise InputError(
            f"{where} describes no model that can be built: {say(error)}. Get the file again, or "
            "mend what is named."
        ) from error
    finally:
        handle.remove()


def check_size(model: torch.nn.Module, held: int | None, where: str) -> None:
    """Refuse a model that is far larger than the weights that there are for it.

    Args:
        model: built without numbers.
        held: numbers in the files; None where that is not known.
        where: the file of the configuration.

    Raises:
        InputError: transformers would fill the difference with random numbers, gigabytes perhaps.
    """
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if held is not None and wanted > 2 * held + 10**6:
        raise InputError(
            f"{where} describes a model of {wanted:,} numbers, but its files hold {held:,}. They "
            "are not of one checkpoint: get the whole of it again."
        )


@contextmanager
def blame(path: Path | str) -> Iterator[None]:
    """In this block whatever fails is told as the fault of a file, in one line.

    Raises:
        MMLensError: something failed, and had not said itself why.
    """
    try:
        yield
    except (MMLensError, OSError):
        raise
    except Exception as error:  # many libraries read what others wrote, each failing in its own way
        if lacks_memory(error):
            raise
        raise MMLensError(f"{path} cannot be used: {say(error)}. Fetch it again.") from error


def say(error: BaseException) -> str:
    """The first line of an error, or the name of its class if it has none."""
    if "trust_remote_code" in str(error):
        return "it asks for code of its own to be run, which trust_remote_code=True would allow"
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if isinstance(error, LookupError) else text
