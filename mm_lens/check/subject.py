"""What is checked, what it is shown, and how numbers are compared with native ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mm_lens.check import native as plain
from mm_lens.check.painting import SIZES
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.rerun import TOLERANCE

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
