"""Samples in batches that are ready for the model, prepared while the model works on others.

A batch is a run of `batch_size` samples of the data set and the unit of work: which process takes
it, and when, changes nothing in it. Padding changes a state in its last digits, so that a batch
must not depend on how the work is shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mm_lens._storage.hashing import digest
from mm_lens.arguments import describe_value
from mm_lens.data.datasets import DataSet
from mm_lens.data.samples import Sample, Samples
from mm_lens.errors import InputError, MMLensError, lacks_memory
from mm_lens.model.binding import identify_documents, identify_pictures, identify_texts
from mm_lens.model.families.known import require_match
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.frames import Frame
from mm_lens.profiling.collecting.token_sample import Group, Offer

OnError: TypeAlias = Literal["raise", "skip"]

READERS = 8
"""Threads that read the pictures of a batch where a GPU waits for them."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Item:
    """A sample that was read, without its image.

    Attributes:
        index: place in the data set.
        id: of the sample.
        text: of the sample.
        document: id of what it shares with others: its image, or its text where it has none.
            Several questions about one image repeat its tokens; held out or resampled one by one
            they would pass for independent.
    """

    index: int
    id: str
    text: str
    document: int

    @property
    def mark(self) -> int:
        """Digest of all of it but its place."""
        return digest(repr((self.id, self.text, self.document)))

    @staticmethod
    def of(index: int, sample: Sample) -> Item:
        """What is needed of a sample besides its inputs."""
        images = sample.image if isinstance(sample.image, tuple) else (sample.image,)
        pixels = [repr((i.mode, i.size)).encode() + i.tobytes() for i in images if i is not None]
        content = b"".join(pixels) if pixels else sample.text
        return Item(index, sample.id, sample.text, digest(content))


@dataclass(frozen=True)
class Batch:
    """What became of the samples of a batch.

    Attributes:
        number: of the batch.
        size: samples in it.
        parts: the samples that can be used with their inputs; in one part, unless a sample that
            the processor refuses had to be found.
        skipped: those that cannot be read: their index, their name, and why.
    """

    number: int
    size: int
    parts: list[tuple[list[Item], Inputs]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)


def check_sample(index: int, sample: Any) -> None:
    """Refuse what is no sample: a data set of tuples or pictures is no data set of samples.

    Raises:
        InputError: naming the sample, and what it lacks.
    """
    lacking = [name for name in ("id", "text", "image") if not hasattr(sample, name)]
    if lacking or not isinstance(sample.id, str):
        raise InputError(
            f"Sample #{index} is {describe_value(sample)}"
            + (f", which has no {lacking[0]}" if lacking else f": its id {sample.id!r} is no text")
            + ". Give mm_lens.data.Sample(id, text, image, answer), the id a text of its own."
        )


class Reader:
    """Batches of the first `n_samples` samples of a data set.

    Args:
        model: prepares the inputs.
        dataset: the samples.
        n_samples: how many of them.
        batch_size: samples in a batch.
        on_error: what happens with a sample that cannot be read or prepared.
        chat_template: as `prepare` takes it.
        padding_side: as `prepare` takes it.
    """

    def __init__(
        self,
        model: Any,
        dataset: Samples,
        n_samples: int,
        batch_size: int,
        on_error: OnError,
        chat_template: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
    ) -> None:
        self.model, self.dataset, self.on_error = model, dataset, on_error
        self.chat_template, self.padding_side = chat_template, padding_side
        starts = range(0, n_samples, batch_size)
        self.ranges = [range(start, min(start + batch_size, n_samples)) for start in starts]
        device = torch.device(model.cfg.device or "cpu")
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """These batches in order, the next one read while one is used.

        Raises:
            DataError, InputError, OSError: as `read`.
        """
        for batch, come in work_ahead(self._read_aside, numbers):
            if come is not None:
                here = torch.cuda.current_stream(come.device)
                here.wait_event(come)
                for _, inputs in batch.parts:  # freed here, while that stream goes on
                    for x in inputs.values():
                        if isinstance(x, Tensor) and x.is_cuda:
                            x.record_stream(here)
            yield batch

    def _read_aside(self, number: int) -> tuple[Batch, Any]:
        """A batch, and the event after which its tensors may be used; None: now.

        On a stream of its own, or the inputs would only come when the running pass is over.
        """
        if self._aside is None:
            return self.read(number), None
        with torch.cuda.stream(self._aside):
            batch = self.read(number)
            return batch, self._aside.record_event()

    def read(self, number: int) -> Batch:
        """Read a batch and prepare its inputs.

        Raises:
            DataError, InputError, OSError: a sample cannot be used (`on_error` "raise").
        """
        batch = Batch(number, len(self.ranges[number]))
        samples = []
        for index, sample in zip(self.ranges[number], self._look(number), strict=True):
            if isinstance(sample, Exception):
                self._skip(batch, index, f"#{index}", sample)
            else:
                check_sample(index, sample)
                samples.append((index, sample))
        self._prepare(batch, samples)
        return batch

    def _look(self, number: int) -> Iterator[Any]:
        """The samples of a batch, or what they fail of."""
        if self._aside is None or not isinstance(self.dataset, DataSet):
            yield from map(self._sample, self.ranges[number])
        else:
            with ThreadPoolExecutor(READERS) as pool:
                yield from pool.map(self._sample, self.ranges[number])

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:  # a data set of somebody's own may raise anything
            return error

    def _prepare(self, batch: Batch, samples: list[tuple[int, Sample]]) -> None:
        if not samples:
            return
        try:
            inputs = self.model.prepare(
                [s.text for _, s in samples],
                [s.image for _, s in samples],
                chat_template=self.chat_template,
                padding_side=self.padding_side,
            )
        except MMLensError as error:
            if len(samples) > 1:  # one of them spoils the batch: find it
                for sample in samples:
                    self._prepare(batch, [sample])
            else:
                self._skip(batch, samples[0][0], samples[0][1].id, error)
        else:
            with suppress(MMLensError):  # worked out here, while the model is busy
                require_match(self.model.family, inputs)
                _ = inputs.on_cpu
            batch.parts.append(([Item.of(*sample) for sample in samples], inputs))

    def _skip(self, batch: Batch, index: int, name: str, error: Exception) -> None:
        if self.on_error == "raise" or lacks_memory(error):  # the sample may be in order
            raise error
        kind = "" if isinstance(error, MMLensError) else f"{type(error).__name__}: "
        batch.skipped.append({"index": index, "sample": name, "reason": f"{kind}{error}"})


@dataclass(frozen=True)
class Rows:
    """The rows of a forward pass that nobody has read from a data set.

    Attributes:
        names: id of the sample in each row.
        documents: id of what a row shares with others, as in `Item`.
        marks: digest of each sample.
        counts: which rows are taken in.
        attended: tokens of each row so far, earlier passes of one generation included.
    """

    names: list[str]
    documents: list[int]
    marks: list[int]
    counts: Bool[Tensor, " batch"]
    attended: Int64[Tensor, " batch"]


def name_rows(frame: Frame, labels: Sequence[Sample | str] | None) -> Rows:
    """Whose rows these are: as labelled, or by their tokens and pixels.

    Raises:
        InputError: there are more or fewer labels than rows.
    """
    batch = frame.shape[0]
    if labels is not None and len(labels) != batch:
        raise InputError(
            f"{len(labels)} rows were labelled, but the forward pass has {batch}. Call "
            "meter.label before each pass, with one id or sample for each row."
        )
    names, documents, marks = [], identify_documents(frame), []
    pictures, texts = identify_pictures(frame), identify_texts(frame)
    for row in range(batch):
        label = (
            labels[row] if labels is not None else f"content {digest(texts[row] + pictures[row])}"
        )
        if isinstance(label, Sample):
            item = Item.of(0, label)
            names.append(item.id)
            documents[row] = item.document
            marks.append(item.mark)
        else:
            names.append(label)
            marks.append(digest(label))
    none = torch.zeros(batch, dtype=torch.int64)
    return Rows(names, documents, marks, torch.ones(batch, dtype=torch.bool), none)


def work_ahead(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`work` of every item in order, the next one worked on while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        running: deque[Future[Out]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > 1:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Pass:
    """A forward pass that is not over yet."""

    frame: Frame
    rows: Rows
    offers: dict[Group, Offer]
    wanted: set[tuple[int, Group]]
    found: dict[tuple[int, Group], Tensor] = field(default_factory=dict)
