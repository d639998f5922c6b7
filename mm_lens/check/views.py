"""Views of the hooks of a block: what they hold, what an edit does, what the gradient is there."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mm_lens.check import native as plain
from mm_lens.check.subject import GROUPS, Subject, agree


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
