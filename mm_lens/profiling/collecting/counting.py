"""Which tokens a data set makes, told from its texts and the sizes of its pictures.

The sample of tokens is those with the k smallest keys (`token_sample`, beside this module). A key
follows from a sample's id and a position, so that it is known without a forward pass which keys
there are, if it is known how many tokens each sample makes, and which of them are an image's. Then
no row is written that does not stay: k in all, over all processes, instead of k (1 + ln(N / k)) in
each.

Tokens of the text are the tokenizer's. What stands for a picture depends on its size alone: it is
learned from a blank picture of that size, or worked out by the family once that was found to agree.
Of a file only the header is read. A few samples are prepared as a whole beforehand: where their
tokens are others than was told, or where something cannot be told, nothing is counted.

It is never trusted: a limit too low would leave the sample short of tokens, which is seen at the
end (`check_counted`), since what was offered is counted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from mm_lens._storage.checked import REMEDY
from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.data.datasets import DataSet, Sample, Samples
from mm_lens.data.prompts import render
from mm_lens.errors import DataError, MMLensError, lacks_memory
from mm_lens.model.inputs import with_bos
from mm_lens.profiling.collecting.token_sample import Group, MergedSample

Size = tuple[int, int]
"""(height, width) of a picture."""
Peek = tuple[str, str, Size | None]
"""Id and text of a sample, and the size of its picture."""

FEW = 64
"""Data sets of so many samples are not counted: there is little to be saved."""
TRIED = 4
"""Samples that are prepared as a whole, to see whether they were told right."""
FEWER = 8
"""Where texts cannot be told without pictures, one in so many may have a text and size of its own.
"""
AT_ONCE = 256
"""Samples whose keys are made at a time."""
_PROBE = "0d7c"  # a text that no template holds
SPARE = 64
"""One in so many tokens more than the sample needs is let through: a sample that changes between
counting and reading then does no harm."""


@dataclass(frozen=True)
class Counted:
    """What is known of the tokens before the first forward pass; empty: nothing.

    Attributes:
        seen: how many tokens of each modality the data make.
        limits: the largest key of each group that can be in the sample, where there are more tokens
            than are sampled.
        lengths: tokens of each sample.
    """

    seen: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[Group, int] = field(default_factory=dict)
    lengths: Sequence[int] = ()


def count_tokens(model: Any, dataset: Samples, plan: Any) -> Counted:
    """Count the tokens of a data set, where that can be done beforehand.

    Args:
        model: whose tokens they are.
        dataset: the samples.
        plan: which of them, and how many tokens are sampled (`states.SamplingPlan`).
    """
    peek = _peeks(dataset)
    if peek is None or plan.n_samples <= FEW or plan.on_error != "raise":
        return Counted()  # tokens of samples that are skipped would never come
    keep = plan.k + plan.k // SPARE
    seen = {"visual": 0, "text": 0}
    wanted: Sequence[Group] = plan.modalities
    if "all" in wanted:
        wanted = ("visual", "text")
    lengths: list[int] = []
    smallest = {group: torch.zeros(0, dtype=torch.int64) for group in wanted}
    try:
        told = _choose(
            model,
            plan.chat_template,
            _tried(dataset, peek, plan.n_samples),
            lambda: len({peek(i)[1:] for i in range(plan.n_samples)}) <= plan.n_samples // FEWER,
        )
        if told is None:
            return Counted()
        for start in range(0, plan.n_samples, AT_ONCE):
            some = [peek(i) for i in range(start, min(start + AT_ONCE, plan.n_samples))]
            rows = [torch.tensor(row) for row in told.tokens(some)]
            lengths += map(len, rows)
            for group, keys in told.keys(some, rows, plan.seed).items():
                seen[group] += len(keys)
                if group in smallest:
                    smallest[group] = torch.cat([smallest[group], keys]).sort().values[:keep]
    except Exception as error:  # reading it for its own sake says better what is wrong
        if lacks_memory(error):
            raise
        return Counted()
    limits = {group: int(keys[-1]) for group, keys in smallest.items() if seen[group] > keep}
    return Counted(seen, limits, lengths)


def _tried(
    dataset: Samples, peek: Callable[[int], Peek], n_samples: int
) -> list[tuple[Sample, Peek]]:
    """The samples that are prepared as a whole."""
    tried = sorted({i * (n_samples - 1) // (TRIED - 1) for i in range(TRIED)})
    return [(dataset[i], peek(i)) for i in tried]


def check_counted(tokens: MergedSample, limits: Mapping[Group, int]) -> None:
    """Refuse a sample that lacks tokens, since some that were counted never came.

    Raises:
        DataError: there are fewer than asked for, though there were enough.
    """
    for group in limits:
        held, due = tokens.count(group), min(tokens.k, tokens.seen()[group])
        if held < due:
            raise DataError(
                f"Only {held:,} of {due:,} {group} tokens were kept: the samples make other tokens "
                "than their texts and the sizes of their pictures told before the run, so they "
                "have changed since, or differ each time. Make them the same each time, or pass "
                f'on_error="skip", which tells nothing beforehand. {REMEDY}'
            )


def _peeks(dataset: Any) -> Callable[[int], Peek] | None:
    """What tells a sample's tokens without its pixels; None where that is read with them."""
    if isinstance(dataset, DataSet):
        return dataset.peek
    if type(dataset) not in (list, tuple) or not all(isinstance(s, Sample) for s in dataset):
        return None

    def peek(index: int) -> Peek:
        sample: Sample = dataset[index]
        image = sample.image
        if isinstance(image, tuple):
            raise _Unknown
        return sample.id, sample.text, None if image is None else (image.height, image.width)

    return peek


class _Unknown(Exception):
    """Tokens cannot be told."""


def _choose(
    model: Any,
    chat_template: bool | None,
    tried: Sequence[tuple[Sample, Peek]],
    are_few: Callable[[], bool],
) -> _Told | None:
    """What tells the tokens of these samples right, if anything does.

    Where texts cannot be told without pictures, each may be prepared with a blank one, if there are
    few of them.
    """
    for encode in (model.processor.tokenizer, None):
        if encode is None and not are_few():
            return None
        told = _Told(model, chat_template, encode)
        with suppress(_Unknown):
            if all(told.is_right(sample, peek) for sample, peek in tried):
                return told
    return None


class _Told:
    """Tokens of samples as a model's processor will make them.

    Args:
        model: whose they are.
        chat_template: as `prepare` takes it.
        encode: the tokenizer; None prepares each text with a blank picture of the right size.
    """

    def __init__(
        self,
        model: Any,
        chat_template: bool | None,
        encode: Callable[..., Mapping[str, Any]] | None,
    ) -> None:
        self.model, self.family, self.processor = model, model.family, model.processor
        self.chat_template, self.encode = chat_template, encode
        self._of_size: dict[Size, Tensor] = {}
        self._whole: dict[tuple[str, Size | None], Tensor] = {}
        self._frames: dict[int, str] = {}
        self._agree = 0

    def keys(
        self, some: Sequence[Peek], rows: Sequence[Int64[Tensor, " pos"]], seed: int
    ) -> dict[Literal["visual", "text"], Int64[Tensor, " n"]]:
        """Keys of all tokens of these samples, whose rows they are, by group."""
        ids = torch.tensor([digest(name) for name, _, _ in some])
        sample = torch.cat([i.expand(len(row)) for i, row in zip(ids, rows, strict=True)])
        position = torch.cat([torch.arange(len(row)) for row in rows])
        visual = torch.cat([*rows]) == self.family.image_token_id
        key = sampling_key(sample, position, seed)
        return {"visual": key[visual], "text": key[~visual]}

    def tokens(self, some: Sequence[Peek]) -> Iterator[list[int]]:
        """The row of each of these samples."""
        if self.encode is None:
            for _, text, size in some:
                if (text, size) not in self._whole:
                    self._whole[text, size] = torch.tensor(self._with_blank(text, size))
                yield self._whole[text, size].tolist()
            return
        prompts = [self._render(text, int(size is not None)) for _, text, size in some]
        written, texts = with_bos(self.processor.tokenizer, prompts)
        found = self.encode(texts, add_special_tokens=not written)["input_ids"]
        for (_, text, size), row in zip(some, found, strict=True):
            if size is None:
                yield row
                continue
            at = self._placeholder(row)
            yield row[:at] + self._expansion(size, text, row, at) + row[at + 1 :]

    def _render(self, text: str, n_images: int) -> str:
        """The prompt as the tokenizer gets it. A chat template is asked once: it takes as long as
        a forward pass of a small model, and puts the same around any text without a placeholder.
        """
        if self.processor.image_token in text or text != text.strip():
            return self._rendered(text, n_images)
        if n_images not in self._frames:
            frame = self._rendered(_PROBE, n_images)
            if frame.count(_PROBE) != 1:
                raise _Unknown
            self._frames[n_images] = frame
        return self._frames[n_images].replace(_PROBE, text)

    def _rendered(self, text: str, n_images: int) -> str:
        behind = self.family.behind_image
        return render(self.processor, text, n_images, self.chat_template, behind).text

    def is_right(self, sample: Sample, peek: Peek) -> bool:
        """Whether the processor makes of a sample what was told."""
        (row,) = self.tokens([peek])
        if isinstance(sample.image, tuple):
            raise _Unknown
        inputs = self._prepare(sample.text, sample.image)
        visual = torch.tensor(row) == self.family.image_token_id
        return inputs.input_ids[0].tolist() == row and all(
            torch.equal(inputs.layout.mask(group)[0].cpu(), mask)
            for group, mask in (("visual", visual), ("text", ~visual))
        )

    def _with_blank(self, text: str, size: Size | None) -> list[int]:
        image = None if size is None else Image.new("RGB", size[::-1])
        row: list[int] = self._prepare(text, image).input_ids[0].tolist()
        return row

    def _prepare(self, text: str, image: Image.Image | None) -> Any:
        return self.model.prepare([text], [image], chat_template=self.chat_template)

    def _placeholder(self, row: list[int]) -> int:
        """Where the picture's placeholder stands; the text has one."""
        token = self.processor.image_token
        wanted = self.processor.tokenizer.convert_tokens_to_ids(token)
        if row.count(wanted) != 1:
            raise _Unknown
        return row.index(wanted)

    def _expansion(self, size: Size, text: str, row: list[int], at: int) -> list[int]:
        """What stands in the place of the placeholder of a picture of this size."""
        if size not in self._of_size:
            self._of_size[size] = torch.tensor(self._learn(size, text, row, at), dtype=torch.int32)
        found: list[int] = self._of_size[size].tolist()
        return found

    def _learn(self, size: Size, text: str, row: list[int], at: int) -> list[int]:
        counted = self._counted(size)
        if self._agree >= TRIED and counted is not None:
            return counted
        whole = self._with_blank(text, size)
        behind = len(row) - at - 1
        if whole[:at] != row[:at] or whole[len(whole) - behind :] != row[at + 1 :]:
            raise _Unknown
        found = whole[at : len(whole) - behind]
        self._agree = self._agree + 1 if found == counted else 0
        return found

    def _counted(self, size: Size) -> list[int] | None:
        """The same by the family's arithmetic, which some have only with the processor's output."""
        try:
            return [self.family.image_token_id] * len(self.family.geometry(size))
        except (MMLensError, KeyError, NotImplementedError, TypeError, AttributeError, IndexError):
            return None
