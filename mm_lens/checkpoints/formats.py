"""Layouts of published files that transformers cannot load, and where such are found.

A format lives outside of this package, like a family, and is found through the entry point group
`mm_lens.formats`, by its name. `mm_lens.convert` and `mm_lens.load` make a transformers directory
of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import ClassVar

from mm_lens.checkpoints.shards import ConversionPlan
from mm_lens.errors import MMLensError
from mm_lens.plugins import plugins

GROUP = "mm_lens.formats"


class CheckpointFormat(ABC):
    """One layout of files: how it is told from others, and what becomes of each tensor."""

    name: ClassVar[str]
    """What `mm-lens convert NAME …` calls it."""

    @classmethod
    @abstractmethod
    def files(cls, available: Collection[str]) -> list[str]:
        """Those files of a directory or repository that a conversion needs.

        Args:
            available: paths of all files, relative, with forward slashes.

        Returns:
            Paths; empty where the layout is not this one.
        """

    @classmethod
    @abstractmethod
    def plan(cls, source: Path, *, vision_tower: str | None) -> ConversionPlan:
        """What to write; nothing is written yet, and no large tensor is read.

        Args:
            source: a directory in this layout.
            vision_tower: hub id or directory of a vision tower that the layout does not hold; None
                for the one it was published with.

        Raises:
            MMLensError: a file is missing, damaged or unsafe, or the files do not fit together.
        """


@cache
def formats() -> dict[str, type[CheckpointFormat]]:
    """Every installed format by name."""
    return {loaded.name: loaded for loaded in plugins(GROUP, "Format")}


def format_named(name: str) -> type[CheckpointFormat]:
    """The format of this name.

    Raises:
        MMLensError: there is none; the message lists those there are.
    """
    try:
        return formats()[name]
    except KeyError:
        known = ", ".join(sorted(formats())) or "none"
        raise MMLensError(f"No format is called {name!r}. Known: {known}.") from None


def recognise(files: Collection[str]) -> type[CheckpointFormat] | None:
    """The format of a directory or repository with these files, or None."""
    return next((f for _, f in sorted(formats().items()) if f.files(files)), None)
