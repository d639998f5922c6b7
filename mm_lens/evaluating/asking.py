"""Samples as a protocol asks them, and what became of the answers.

The batches are those of `mm_lens.profiling.reading`: runs of samples that are the same however the
work is shared, the next one prepared while the model works on this one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mm_lens.data.samples import DataSet, Sample, Samples
from mm_lens.errors import DataError
from mm_lens.evaluating.protocols import Protocol
from mm_lens.evaluating.scoring import score_answers
from mm_lens.model.inputs import Inputs
from mm_lens.profiling.reading import Batch, Item

Condition: TypeAlias = Literal["given", "blanked", "removed"]
CONDITIONS: tuple[Condition, ...] = ("given", "blanked", "removed")
GREY = (128, 128, 128)
"""What a blanked image is all over."""


@dataclass(frozen=True)
class Asked:
    """A question that was put, without its image.

    Attributes:
        sample: with the text that the protocol makes of it.
        shared: digest of what it shares with others: its image, or its text where it has none.
        image: whether it has one.
    """

    sample: Sample
    shared: int
    image: bool


class Questions(Samples):
    """A data set as a protocol asks it, under one condition. Remembers what it was asked for.

    Args:
        samples: the data.
        protocol: writes the texts.
        condition: what becomes of images: "given" as they are, "blanked" uniform grey of the same
            size, "removed" not there.
        options: answers to choose from, of samples that have none of their own.
        n: how many samples, from the first on. Where images are taken away, those that are known to
            have none are left out.
    """

    def __init__(
        self,
        samples: Samples,
        protocol: Protocol,
        condition: Condition,
        options: tuple[str, ...] = (),
        n: int = 0,
    ) -> None:
        self.samples, self.protocol, self.condition = samples, protocol, condition
        self.options = options
        self.indices = [i for i in range(n) if condition == "given" or _may_have_image(samples, i)]
        self.asked: dict[int, Asked] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[self.indices[index]]
        if isinstance(sample, Sample) and self.options and not sample.options:
            right = self.options.index(sample.answer) if sample.answer in self.options else None
            sample = replace(sample, options=self.options, right=right)
        text = self._text(sample)
        images = sample.image if isinstance(sample.image, tuple) else (sample.image,)
        there = any(image is not None for image in images)
        kept = replace(sample, text=text, image=None)
        self.asked[index] = Asked(kept, Item.of(index, sample).document, there)
        if self.condition == "removed" or not there:
            return kept
        if self.condition == "blanked":
            grey = tuple(Image.new("RGB", i.size, GREY) for i in images if i is not None)
            return replace(sample, text=text, image=grey if len(grey) > 1 else grey[0])
        return replace(sample, text=text)

    def _text(self, sample: Sample) -> str:
        if not isinstance(sample, Sample):
            raise DataError(f"Evaluating takes mm_lens.data.Sample, not {type(sample).__name__}.")
        if self.protocol.options and not sample.options:
            raise DataError(
                f"The sample {sample.id} has no options, which the protocol {self.protocol.name} "
                "needs. Name their column with options_column= (--options-column), the same ones "
                "for all with options= (--options), or take another protocol."
            )
        if self.protocol.right(sample) is None:
            raise DataError(
                f"The sample {sample.id} has no right answer to compare with. Name its column with "
                "answer_column= (--answer-column)."
            )
        return self.protocol.ask(sample)


def _may_have_image(samples: Samples, index: int) -> bool:
    return not isinstance(samples, DataSet) or bool(samples._rows[index].images)


def answer_batch(
    model: Any, batch: Batch, questions: Questions, tokens: int, by: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What the model answers to a batch, and what is right, ready for JSON."""
    found = []
    for items, inputs in batch.parts:
        asked = [questions.asked.pop(item.index) for item in items]
        answers = _answer(model, inputs, [each.sample for each in asked], questions, tokens)
        for item, each, answer in zip(items, asked, answers, strict=True):
            if each.image or questions.condition == "given":
                index = questions.indices[item.index]
                found.append(_record(index, each, answer, questions, by))
    return found


def _answer(
    model: Any, inputs: Inputs, samples: list[Sample], questions: Questions, tokens: int
) -> list[tuple[str, float, list[float]]]:
    """What is written in answer to each, how sure the model was of it, and the log-probabilities of
    what was to choose from."""
    protocol = questions.protocol
    if protocol.candidates is None:
        stops, sure = _find_stops(model), Sureness()
        written = model.generate(
            inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=stops,
            return_type="tokens",
            verbose=False,
            logits_processor=LogitsProcessorList([sure]),
        )
        new = written[:, inputs.input_ids.shape[1] :]
        texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [(text, log, []) for text, log in zip(texts, sure.of(new, stops), strict=True)]
    choices = [protocol.candidates(sample) for sample in samples]
    scores = score_answers(model, inputs, choices, protocol.mean)
    best = [max(range(len(row)), key=row.__getitem__) for row in scores]
    shares = [float(torch.tensor(row).log_softmax(0).max()) for row in scores]
    return [
        *zip((row[k] for row, k in zip(choices, best, strict=True)), shares, scores, strict=True)
    ]


class Sureness(LogitsProcessor):
    """Remembers the log-probability of what greedy decoding takes at each step; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Float[Tensor, " batch"]] = []

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """The scores as they are."""
        self.steps.append(scores.float().log_softmax(-1).amax(-1).cpu())
        return scores

    def of(self, new: Int[Tensor, "batch step"], stops: int | list[int] | None) -> list[float]:
        """Of each row's text, up to and with the token that ends it."""
        ends = torch.tensor([] if stops is None else stops).reshape(-1)
        logs = torch.stack(self.steps, 1)[:, : new.shape[1]]
        over = torch.isin(new.cpu(), ends).cumsum(1)
        counted = (over == 0) | ((over == 1) & torch.isin(new.cpu(), ends))
        return [float(row[kept].sum()) for row, kept in zip(logs, counted, strict=True)]


def _find_stops(model: Any) -> int | list[int] | None:
    """Tokens that end an answer: those of the checkpoint, which may end a turn otherwise than the
    tokenizer ends a text."""
    config = getattr(model.original_model, "generation_config", None)
    stops = getattr(config, "eos_token_id", None)
    found = {
        *(stops if isinstance(stops, (list, tuple)) else [stops]),
        model.tokenizer.eos_token_id,
    }
    tokens = sorted(token for token in found if token is not None)
    return tokens[0] if len(tokens) == 1 else tokens or None


def _record(
    index: int,
    asked: Asked,
    answer: tuple[str, float, list[float]],
    questions: Questions,
    by: tuple[str, ...],
) -> dict[str, Any]:
    written, confidence, logs = answer
    sample, protocol = asked.sample, questions.protocol
    said, wanted = protocol.read(written, sample), protocol.right(sample)
    about = {name: str(sample.about.get(name, "")) for name in by}
    return {
        "condition": questions.condition,
        "index": index,
        "id": sample.id,
        "image": asked.image,
        "shared": f"{asked.shared:016x}",
        "asked": sample.text,
        "written": written,
        "said": said,
        "wanted": wanted,
        "right": said == wanted,
        "confidence": confidence,
        "n_options": len(sample.options),
        **({"log_probabilities": logs} if logs else {}),
        **about,
    }
