"""Checks of whole passes: logits, places, segments, reruns. Each raises `Fault` where it fails."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from mm_lens.check import native as plain
from mm_lens.check.painting import SIZES, check_places
from mm_lens.check.subject import TEXTS, Fault, Subject, agree, picture
from mm_lens.looking.logit_lens import visual_logit_lens
from mm_lens.model.binding import take_rows
from mm_lens.model.inputs import Inputs
from mm_lens.model.loading import load
from mm_lens.model.running.rerun import TOLERANCE, Rerun

# ---- logits ----


@torch.no_grad()
def same_logits(subject: Subject, inputs: Inputs) -> None:
    """At every position that is attended to."""
    real = inputs.layout.mask("all")
    agree(subject.model(inputs)[real], plain.run(subject.native, inputs)[real], "logits")


def text_only(subject: Subject) -> None:
    """A prompt without an image."""
    same_logits(subject, subject.prepare(TEXTS[:1], [None]))


def one_image(subject: Subject) -> None:
    """A prompt with one image."""
    same_logits(subject, subject.prepare(TEXTS[:1], [picture(0)]))


def several_images(subject: Subject) -> None:
    """A prompt with three images."""
    same_logits(subject, subject.prepare(TEXTS[:1], [[picture(0), picture(1), picture(2)]]))


def left_padding(subject: Subject) -> None:
    """Rows of different lengths."""
    images = [picture(0), [picture(1), picture(2)], picture(3)]
    same_logits(subject, subject.prepare(TEXTS, images, padding_side="left"))


def right_padding(subject: Subject) -> None:
    """Rows of different lengths."""
    images = [picture(0), [picture(1), picture(2)], picture(3)]
    same_logits(subject, subject.prepare(TEXTS, images, padding_side="right"))


def row_without_image(subject: Subject) -> None:
    """Between rows that have one."""
    same_logits(subject, subject.prepare(TEXTS, [picture(0), None, picture(3)]))


@torch.no_grad()
def rows_of_a_batch(subject: Subject) -> None:
    """Each row of a batch has the logits that it has alone, prepared alone or taken out."""
    whole, layout = subject.model(subject.ragged), subject.ragged.layout
    images = [picture(0), [picture(1), picture(2)], picture(3)]
    for row, (text, image) in enumerate(zip(TEXTS, images, strict=True)):
        alone = subject.model(subject.prepare([text], [image]))[0]
        taken = subject.model(take_rows(subject.ragged, [row]))[0]
        real = layout.mask("all")[row]
        agree(whole[row][real], alone, f"row {row} in a batch (not: the row alone)", alone)
        agree(taken[real], alone, f"row {row} taken out (not: the row alone)", alone)


# ---- places ----


def places(subject: Subject) -> None:
    """Each token lies where its box says, in pictures of four shapes."""
    for size in SIZES[:1] if subject.sample else SIZES:
        most = 6 if subject.sample else 1000
        _raise(check_places(subject.native, subject.model, [size], most))


def places_of_two_images(subject: Subject) -> None:
    """The same, with two pictures in one prompt."""
    most = 4 if subject.sample else 1000
    _raise(check_places(subject.native, subject.model, SIZES[:2], most))


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise Fault(f"{len(faults)} tokens: {faults[0]}")


def segments(subject: Subject) -> None:
    """Text before and behind an image is what was written there: nothing of the image is in it."""
    inputs = subject.prepare(["What is it?"], [picture(0)])
    processor: Any = subject.model.processor
    layout, tokenizer = inputs.layout, processor.tokenizer
    image = (layout.image[0] == 0).nonzero().squeeze(1)
    inside = torch.zeros(layout.shape[1], dtype=torch.bool, device=layout.device)
    inside[int(image[0]) : int(image[-1]) + 1] = True
    wrong = inside & (layout.modality[0] == 0) & ~layout.mask("marker")[0]
    wrong_ids = inputs.input_ids[0][wrong.to(inputs.input_ids.device)]
    if bool(wrong.any()):
        raise Fault(f"tokens inside of an image that are no markers: {wrong_ids.tolist()}")
    said = tokenizer.decode(inputs.input_ids[0][~inside.to(inputs.input_ids.device)])
    if "What is it?" not in said.replace(" ", " "):
        raise Fault(f"the question is not outside of the image: {said!r}")


# ---- tools ----


@torch.no_grad()
def bound_tokens(subject: Subject) -> None:
    """A call with bare tokens gets the images of the bound inputs, also for one row of them."""
    model, inputs = subject.model, subject.ragged
    whole = model(inputs)
    with model.bound(inputs):
        agree(model(inputs.input_ids), whole, "logits of bound tokens")
        for row in range(len(inputs.input_ids)):
            agree(model(inputs.input_ids[row : row + 1])[0], whole[row], f"bound row {row}", whole)


def rerun(subject: Subject) -> None:
    """A run from each block on, without an edit, has the logits of the whole pass."""
    layers = list(range(subject.model.cfg.n_layers))
    runs = Rerun(subject.model, subject.ragged, layers)
    for layer in layers:
        difference = runs.difference(layer)
        if not difference <= TOLERANCE.get(runs.logits.dtype, 0.2):
            raise Fault(f"from block {layer} on they differ by {difference:.3g} deviations")


def last_layer(subject: Subject) -> None:
    """The logit lens of the last layer is the model's output."""
    inputs = subject.prepare(TEXTS[:1], [picture(0)])
    n_layers = subject.model.cfg.n_layers
    visual_logit_lens(subject.model, inputs, layers=[n_layers])  # refuses another path


def half_precision(subject: Subject) -> None:
    """In bfloat16 the bridge computes what the native model does."""
    if subject.native.dtype == torch.bfloat16:  # a checkpoint may not fit twice more
        return one_image(subject)
    native, other = (copy.deepcopy(subject.native).bfloat16() for _ in range(2))
    model = load(hf_model=other, processor=subject.model.processor, check=False)
    same_logits(Subject(native, model), subject.prepare(TEXTS[:1], [picture(0)]))
