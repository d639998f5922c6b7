"""Samples and sequences of them: what a data set is.

A `DataSet` is a plain sequence of `Sample`; images are decoded only when a sample is taken, so a
large set costs little memory.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload, runtime_checkable

from PIL import Image

from mm_lens._notebook import Html, make_table, make_thumbnails
from mm_lens.data.sources import Source
from mm_lens.errors import DataError

SHOWN = 5
"""Samples that a notebook shows of a data set."""

Images: TypeAlias = "Image.Image | tuple[Image.Image, ...] | None"
"""The picture of a sample, several where it has several, or None."""


@dataclass(frozen=True)
class Sample:
    """One question about an image, several, or none.

    Attributes:
        id: Names the sample within its data set; stable between runs.
        text: What is asked, after the template of the prompt.
        image: Fully decoded RGB image, a tuple where there are several, or None for a text-only
            sample.
        answer: The expected answer (of one with options, the right option), or None where it is
            not known.
        options: What there is to choose from; empty for an open question.
        right: Place of the right option, from 0, or None.
        about: What else its row says, by column: texts and numbers. `question` is the question
            before the template.
    """

    id: str
    text: str
    image: Images
    answer: str | None
    options: tuple[str, ...] = ()
    right: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """Its images, however many."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)


@runtime_checkable
class Samples(Protocol):
    """A data set: any sequence of samples; one is read when it is taken."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Row:
    """A sample whose images have not been looked at yet.

    Attributes:
        id: as of `Sample`.
        text: as of `Sample`.
        images: where its images are.
        answer: as of `Sample`.
        options: as of `Sample`.
        right: as of `Sample`.
        about: as of `Sample`.
        table: the file that it is from; None for what is no row of one.
        shared: what samples about one image have in common; None takes the image.
    """

    id: str
    text: str
    images: tuple[Source, ...] = ()
    answer: str | None = None
    options: tuple[str, ...] = ()
    right: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    table: Path | None = None
    shared: Hashable = None

    def read(self) -> Sample:
        """The sample, its images decoded.

        Raises:
            DataError: an image cannot be read.
        """
        name = f"of {self.id}" + (f" in {self.table}" if self.table else "")
        images = tuple(image for source in self.images for image in source.read(name))
        image = images if len(images) > 1 else images[0] if images else None
        return Sample(self.id, self.text, image, self.answer, self.options, self.right, self.about)

    def outline(self) -> tuple[str | int, ...]:
        """What tells it from others, undecoded."""
        images = [part for source in self.images for part in source.outline()]
        return (self.id, self.text, *(images or ("", 0, 0)))


if TYPE_CHECKING:
    _Samples = Sequence[Sample]
else:
    # A run-time type checker takes an item of what is annotated as Sequence[Sample]: it would
    # decode an image, perhaps a damaged one, at every call.
    _Samples = Sequence


class DataSet(_Samples):
    """Sequence of samples that decodes each image when its sample is taken.

    `name` says in provenance and titles where the samples come from, `split` which part of a named
    set they are.
    """

    def __init__(self, rows: Sequence[Row], name: str = "", split: str = "") -> None:
        self._rows, self.name, self.split = rows, name, split

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        images = len({source for row in self._rows for source in row.images})
        answers = sum(row.answer is not None for row in self._rows)
        return (
            f"{type(self).__name__}({self.name!r}: {len(self):,} samples, {images:,} images, "
            f"{answers:,} answers)"
        )

    def _repr_html_(self) -> str:
        """The first samples."""
        rows = []
        for row in self._rows[:SHOWN]:
            try:
                picture = make_thumbnails(row.read().images)
            except DataError as error:  # a notebook shows what can be shown
                picture = Html(escape(str(error)))
            rows.append((row.id, row.text, row.answer or "", picture))
        return make_table(["id", "text", "answer", "image"], rows, repr(self))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> DataSet: ...
    def __getitem__(self, index: int | slice) -> Sample | DataSet:
        if isinstance(index, slice):
            return self._with(self._rows[index])
        return self._rows[index].read()

    def outline(self) -> list[tuple[str | int, ...]]:
        """Id, text and, for each image, file, its size in bytes and the time of its last change.

        What tells two sets apart, undecoded. An image given as bytes stands there with their
        digest; -1 is the size of a missing file.
        """
        return [row.outline() for row in self._rows]

    def peek(self, index: int) -> tuple[str, str, tuple[int, int] | None]:
        """Id and text of a sample, and (height, width) of its picture, whose header alone is read.

        Raises:
            OSError: it has several pictures, or one whose size no header says.
        """
        row = self._rows[index]
        if len(row.images) > 1:
            raise OSError(f"{row.id} has several pictures")
        return row.id, row.text, row.images[0].measure() if row.images else None

    def select(self, indices: Sequence[int]) -> DataSet:
        """The samples at `indices`, in that order, still undecoded."""
        return self._with([self._rows[i] for i in indices])

    def draw(self, n: int, seed: int) -> DataSet:
        """`n` samples without replacement, each image once before any is taken again.

        In a causal model questions about one image share its tokens to the last bit, so a second
        question adds copies rather than data.
        """
        order = random.Random(seed).sample(range(len(self)), len(self))
        taken: Counter[Hashable] = Counter()
        turn = {}
        for i in order:
            row = self._rows[i]
            key = row.shared or row.images or i
            turn[i] = taken[key]
            taken[key] += 1
        return self.select(sorted(order, key=turn.__getitem__)[:n])

    def ask(self, write: Callable[[Row], str]) -> DataSet:
        """The same samples with other texts, written from their rows."""
        return self._with([replace(row, text=write(row)) for row in self._rows])

    def _with(self, rows: Sequence[Row]) -> DataSet:
        return DataSet(rows, self.name, self.split)
