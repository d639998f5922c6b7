"""Registered data sets: one file each here, and those that other packages add.

A data set is a function `open_set(where, split)`: what stands behind the colon of `name:where` (""
if nothing does), and the part that is asked for (None: its usual one). It returns a `DataSet`. One
that makes its samples may take `seed` as well. A package adds one through the entry point group
`mm_lens.datasets`:

```toml
[project.entry-points."mm_lens.datasets"]
my-set = "my_package.my_module:open_set"
```
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from mm_lens.data.samples import DataSet
from mm_lens.plugins import plugin, plugin_names

Opener: TypeAlias = Callable[..., DataSet]

GROUP = "mm_lens.datasets"
OWN = {
    "easy-vqa": "easy_vqa",
    "hf": "hugging_face",
    "scenes": "scenes",
    "scienceqa": "scienceqa",
}
"""Module in this folder of each name."""


def names() -> list[str]:
    """Names of all data sets; nothing is imported."""
    return sorted({*OWN, *plugin_names(GROUP)})


def opener(name: str) -> Opener:
    """The function that opens a data set.

    Raises:
        MMLensError: the package that adds it cannot be loaded.
    """
    if name in OWN:
        found: Opener = import_module(f"{__name__}.{OWN[name]}").open_set
    else:
        found = plugin(GROUP, name, "Data set")
    return found


def open_set(name: str, where: str, split: str | None, seed: int) -> DataSet:
    """A registered data set; `seed` is told to those that make their samples."""
    function = opener(name)
    options: dict[str, Any] = {}
    if "seed" in inspect.signature(function).parameters:
        options["seed"] = seed
    return function(where, split, **options)
