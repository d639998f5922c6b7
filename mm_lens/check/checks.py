"""The checks of the suite. Each raises `Fault` where something does not hold, naming what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from mm_lens.causal.patching import generic_activation_patch
from mm_lens.check import native as plain
from mm_lens.check.painting import SIZES, check_places
from mm_lens.data.samples import Sample
from mm_lens.looking.logit_lens import visual_logit_lens
from mm_lens.model.binding import take_rows
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.loading import load
from mm_lens.model.running.rerun import TOLERANCE, Rerun
from mm_lens.profiling.run import profile

GROUPS = ("visual", "text")


class Fault(Exception):
    """Something does not hold: the reason that the table gives, and nothing that users meet."""


@dataclass
class Subject:
    """A model that is checked: the bridge, and the native model with the same weights."""

    native: Any
    model: VisionLanguageBridge
    sample: bool = False

    def prepare(self, texts: Sequence[str], images: Sequence[Any], **options: Any) -> Inputs:
        """Inputs on the device of the model; None in `images` is a row without one."""
        return self.model.prepare(list(texts), list(images), **options)

    @cached_property
    def ragged(self) -> Inputs:
        """Rows of different lengths, one with two images."""
        return self.prepare(TEXTS, [picture(0), [picture(1), picture(2)], picture(3)])

    @property
    def layers(self) -> list[int]:
        """Blocks that are looked at."""
        last = self.model.cfg.n_layers - 1
        return [last] if self.sample else sorted({0, last // 2, last})

    def places(self, layer: int) -> dict[str, plain.Place]:
        """Hooks of a block that both models have, by the name that they have in the bridge."""
        dead = self.model._remedy_if_dead
        found = {}
        for short, place in plain.find_places(self.model, layer).items():
            first, _, rest = short.rpartition(".")
            name = f"blocks.{layer}.{{group}}.{first + '.' if first else ''}hook_{rest}"
            full = name.replace("{group}.", "")
            if name.format(group="visual") in self.model._hook_registry and dead(full) is None:
                found[name] = place
        return found


TEXTS = ("What is it?", "Which of the two is larger?", "Is it?")


def picture(k: int) -> Image.Image:
    """Noise; the k-th has a shape of its own."""
    height, width = SIZES[k % len(SIZES)]
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(k))
    return Image.fromarray((noise * 255).byte().numpy())


def agree(ours: Tensor, theirs: Tensor, what: str, scale: Tensor | None = None) -> None:
    """Refuse a difference beyond rounding, over the standard deviation of the values.

    Raises:
        Fault: naming how far apart they are.
    """
    if ours.shape != theirs.shape:
        raise Fault(f"{what}: {list(ours.shape)}, natively {list(theirs.shape)}")
    spread = (theirs if scale is None else scale).float().std().clamp(min=1e-30)
    difference = float((ours - theirs).float().abs().max() / spread) if ours.numel() else 0.0
    if not difference <= TOLERANCE.get(theirs.dtype, 0.2):
        raise Fault(f"{what} differs from the native one by {difference:.3g} standard deviations")


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


# ---- views ----


@torch.no_grad()
def read(subject: Subject) -> None:
    """Every view of every hook holds the native rows of its modality."""
    inputs = subject.ragged
    for layer in subject.layers:
        places = subject.places(layer)
        held: dict[str, Tensor] = {}

        def keep(name: str, held: dict[str, Tensor] = held) -> plain.Change:
            def change(x: Tensor) -> None:
                held[name] = x.clone()

            return change

        plain.run(subject.native, inputs, [(p, keep(n)) for n, p in places.items()])
        names = [name.format(group=group) for name in places for group in GROUPS]
        _, cache = subject.model.run_with_cache(inputs, names_filter=names)
        for name, theirs in held.items():
            for group in GROUPS:
                ours = cache.cache_dict[name.format(group=group)][inputs.layout.valid(group)]
                rows = theirs[inputs.layout.mask(group)]
                agree(ours.flatten(1), rows.flatten(1), name.format(group=group), theirs)


def bend(x: Tensor) -> Tensor:
    """The edit that is made."""
    return -0.5 * x


@torch.no_grad()
def edit(subject: Subject) -> None:
    """An edit at a view equals the native model's under the same edit of the rows of its mask."""
    inputs = subject.ragged
    real = inputs.layout.mask("all")
    for layer in subject.layers:
        for name, place in subject.places(layer).items():
            for group in GROUPS:
                mask = inputs.layout.mask(group)

                def change(x: Tensor, mask: Tensor = mask) -> Tensor:
                    shown = rearrange(mask, f"batch pos -> batch pos {'1 ' * (x.ndim - 2)}")
                    return torch.where(shown, bend(x), x)

                theirs = plain.run(subject.native, inputs, [(place, change)])
                view = name.format(group=group)
                ours = subject.model.run_with_hooks(
                    inputs, fwd_hooks=[(view, lambda x, hook: bend(x))]
                )
                agree(ours[real], theirs[real], f"logits under an edit at {view}")


def gradient(subject: Subject) -> None:
    """The gradient at a view is the native one at the rows of its modality."""
    inputs = subject.ragged
    real = inputs.layout.mask("all")
    weights: Tensor | None = None
    for layer in subject.layers:
        places = subject.places(layer)
        held: dict[str, Tensor] = {}
        ours: dict[str, Tensor] = {}

        def keep(name: str, held: dict[str, Tensor] = held) -> plain.Change:
            def change(x: Tensor) -> Tensor:
                held[name] = x.clone()
                held[name].retain_grad()
                return held[name]

            return change

        def note(grad: Tensor, hook: Any, ours: dict[str, Tensor] = ours) -> None:
            ours[hook.name] = grad.clone()

        with torch.enable_grad():
            theirs = plain.run(subject.native, inputs, [(p, keep(n)) for n, p in places.items()])
            if weights is None:
                generator = torch.Generator().manual_seed(0)
                weights = torch.randn(theirs[real].shape, generator=generator).to(theirs)
            (theirs[real] * weights).sum().backward()
            names = [name.format(group=group) for name in places for group in GROUPS]
            with subject.model.hooks(bwd_hooks=[(name, note) for name in names]):
                (subject.model(inputs)[real] * weights).sum().backward()
        subject.native.zero_grad()
        subject.model.zero_grad()
        for name, tensor in held.items():
            for group in GROUPS:
                view = name.format(group=group)
                assert tensor.grad is not None, "the backward pass went through it"
                rows, mine = tensor.grad[inputs.layout.mask(group)], ours[view]
                agree(
                    mine[inputs.layout.valid(group)].flatten(1),
                    rows.flatten(1),
                    f"gradient at {view}",
                    tensor.grad,
                )


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


def generation(subject: Subject) -> None:
    """Greedy decoding has the native model's tokens, of one prompt and of a padded batch."""
    model = subject.model
    one = subject.prepare(TEXTS[:1], [picture(0)])
    batches = [one]
    if subject.model.family.padding_side != "right":
        batches.append(subject.prepare(TEXTS[:2], [picture(0), picture(1)], padding_side="left"))
    for inputs in batches:
        theirs = subject.native.generate(**inputs.native, max_new_tokens=5, do_sample=False)
        ours = model.generate(
            inputs, max_new_tokens=5, do_sample=False, verbose=False, return_type="tokens"
        )
        mine, new = (x[:, inputs.input_ids.shape[1] :].cpu() for x in (ours, theirs))
        if not torch.equal(mine, new):
            raise Fault(f"generated {mine.tolist()}, natively {new.tolist()}")


def rerun(subject: Subject) -> None:
    """A run from each block on, without an edit, has the logits of the whole pass."""
    layers = list(range(subject.model.cfg.n_layers))
    runs = Rerun(subject.model, subject.ragged, layers)
    for layer in layers:
        difference = runs.difference(layer)
        if not difference <= TOLERANCE.get(runs.logits.dtype, 0.2):
            raise Fault(f"from block {layer} on they differ by {difference:.3g} deviations")


@torch.no_grad()
def patching_table(subject: Subject) -> None:
    """Effects of patching by modality equal those of native hooks with the clean run's rows."""
    model, texts = subject.model, TEXTS[:1]
    clean, corrupted = (subject.prepare(texts, [_same_shape(k)]) for k in (0, 1))

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 3] - logits[:, -1, 5]

    layer = subject.layers[-1]
    _, cache = model.run_with_cache(clean, names_filter=[f"blocks.{layer}.hook_resid_pre"])
    found = generic_activation_patch(
        model, corrupted, cache, metric, "resid_pre", axis="modality", layers=[layer],
        progress=False,
    )  # fmt: skip
    place = plain.find_places(model, layer)["resid_pre"]
    held: list[Tensor] = []
    plain.run(subject.native, clean, [(place, lambda x: held.append(x.clone()))])
    for value, group in zip(found.values.flatten(), GROUPS, strict=True):
        mask = corrupted.layout.mask(group)[..., None]

        def change(x: Tensor, mask: Tensor = mask) -> Tensor:
            return torch.where(mask, held[0], x)

        logits = plain.run(subject.native, corrupted, [(place, change)])
        theirs = metric(logits).flatten()
        agree(value.to(theirs).reshape(1), theirs, f"patching {group}", logits)


def _same_shape(k: int) -> Image.Image:
    noise = torch.rand(*SIZES[0], 3, generator=torch.Generator().manual_seed(k))
    return Image.fromarray((noise * 255).byte().numpy())


def last_layer(subject: Subject) -> None:
    """The logit lens of the last layer is the model's output."""
    inputs = subject.prepare(TEXTS[:1], [picture(0)])
    n_layers = subject.model.cfg.n_layers
    visual_logit_lens(subject.model, inputs, layers=[n_layers])  # refuses another path


def batch_sizes(subject: Subject) -> None:
    """A profile is the same for batches of one and of four samples."""
    samples = [Sample(str(k), TEXTS[k % 3], picture(k), None) for k in range(5)]
    options: dict[str, Any] = {"progress": False, "streams": ["residual"]}
    options["metrics"] = ["linearity_paper", "mean_cosine"]
    tables = [profile(subject.model, samples, batch_size=n, **options).table for n in (1, 4)]
    # The metrics are computed in float64 from states that the model rounds.
    dtype = subject.model.cfg.dtype
    one, four = (torch.tensor(table["value"].to_numpy()).to(dtype) for table in tables)
    agree(one, four, "profile in batches of one (not: of four)")


def half_precision(subject: Subject) -> None:
    """In bfloat16 the bridge computes what the native model does."""
    native, other = (copy.deepcopy(subject.native).bfloat16() for _ in range(2))
    model = load(hf_model=other, processor=subject.model.processor, check=False)
    same_logits(Subject(native, model), subject.prepare(TEXTS[:1], [picture(0)]))
