"""Running the rest of a forward pass again and again, from a block on, several copies at a time.

The vision tower and the blocks below are run once. TransformerLens's `start_at_layer` would run the
blocks below each time and throw their output away: here they hand their input on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs


class Rerun:
    """A forward pass of `inputs` that can be run again from any of `layers` on.

    Attributes:
        logits: of the first, complete pass.
    """

    logits: Float[Tensor, "batch pos d_vocab"]

    def __init__(
        self,
        model: VisionLanguageBridge,
        inputs: Inputs,
        layers: Sequence[int],
        hooks: Sequence[NamedHook] = (),
    ) -> None:
        """Run the model once.

        Args:
            model: in evaluation mode.
            inputs: what it is run on.
            layers: blocks that are started from.
            hooks: forward hooks of every run. They must treat every row alike.
        """
        self.model, self.inputs, self.hooks = model, inputs, list(hooks)
        self.states: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(tensor: Tensor, hook: Any) -> None:
                self.states[layer] = tensor.detach().clone()

            return hook

        # Before the hooks of the run: an edit of what enters the block is made in each run anew.
        keepers = [(f"blocks.{layer}.hook_resid_pre", keep(layer)) for layer in sorted(set(layers))]
        with torch.no_grad():
            self.logits = model.run_with_hooks(inputs, fwd_hooks=[*keepers, *self.hooks])

    def run(
        self, layer: int, copies: int, hooks: Sequence[NamedHook] = ()
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ...]:
        """Logits of each of `copies` copies, run from block `layer` on under `hooks`.

        The hooks see the copies one after the other along the batch axis, and come after those of
        every run.
        """
        state = self.states[layer]
        mask = self.inputs.tensors.get("attention_mask")
        options: dict[str, Any] = {}
        if mask is not None and not bool(mask.all()):
            options["attention_mask"] = mask.repeat(copies, 1)
            # As the bridge derives them for tokens, which are not passed here.
            options["position_ids"] = (options["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad(), _skip_blocks(self.model, layer), self._layout(copies):
            logits = self.model.run_with_hooks(
                state.repeat(copies, 1, 1),
                fwd_hooks=[*self.hooks, *hooks],
                start_at_layer=layer,
                **options,
            )
        parts: tuple[Tensor, ...] = logits.split(len(state))
        return parts

    @contextmanager
    def _layout(self, copies: int) -> Iterator[None]:
        """What every position is, for hooks per modality: there are no tokens to tell it by."""
        context = self.model.context
        before, context.explicit = context.explicit, self.inputs.layout.repeat(copies)
        try:
            yield
        finally:
            context.explicit = before


@contextmanager
def _skip_blocks(model: VisionLanguageBridge, n: int) -> Iterator[None]:
    """Have the first `n` blocks hand on their input."""
    skipped = list(model.blocks)[:n]
    for block in skipped:  # past `__setattr__`, which TransformerLens sends on to what is wrapped
        block.__dict__["forward"] = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield
    finally:
        for block in skipped:
            del block.__dict__["forward"]
