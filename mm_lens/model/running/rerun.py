"""Running the rest of a forward pass again and again, from a block on, several copies at a time.

The vision tower and the blocks below are run once. TransformerLens's `start_at_layer` would run the
blocks below each time and throw their output away: here they hand their input on.

What the language model is told beside the embeddings (masks, positions, features that enter between
blocks) is that of the first pass: a family may make it of tokens and pixels, which a rerun lacks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logits import Kept
from mm_lens.model.running.masks import read_masks

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest difference of logits, over their standard deviation, that counts as rounding."""

OWN = ("inputs_embeds", "input_ids", "past_key_values", "use_cache")
"""Arguments of the language model that a rerun gives itself."""


class Rerun:
    """A forward pass of `inputs` that can be run again from any of `layers` on.

    Attributes:
        logits: of the first, complete pass; of one position for each row if `at` says so.
        masks: which keys each query may look at, by block, in the first pass; a head axis of size 1
            stands for all heads. Blocks without attention are left out.
    """

    logits: Float[Tensor, "batch pos d_vocab"]
    masks: Mapping[int, Bool[Tensor, "batch head query key"]]

    def __init__(
        self,
        model: VisionLanguageBridge,
        inputs: Inputs,
        layers: Sequence[int],
        hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
        at: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Run the model once; and once more from the first of `layers` if there are `hooks`.

        Args:
            model: in evaluation mode.
            inputs: what it is run on.
            layers: blocks that are started from.
            hooks: forward hooks of every run. They must treat every row alike.
            at: position in each row whose logits are wanted; None wants all.

        Raises:
            InputError: under `hooks` the same run has other logits each time.
            MMLensError: the check at load found that reruns of this model are wrong.
        """
        model.report.require("Running blocks again (patching, tables of effects)", "rerun")
        self.model, self.inputs, self.hooks = model, inputs, list(hooks)
        self.kept = None if at is None else Kept(model, at)
        self._options = self.kept.options if self.kept else {}
        self.states: dict[int, Tensor] = {}
        self.told: dict[str, Any] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(tensor: Tensor, hook: Any) -> None:
                self.states[layer] = tensor.detach().clone()

            return hook

        # Before the hooks of the run: an edit of what enters the block is made in each run anew.
        keepers = [(f"blocks.{layer}.hook_resid_pre", keep(layer)) for layer in sorted(set(layers))]
        with torch.no_grad(), self._listening(), read_masks(model) as self.masks:
            self.logits = self._read(
                model.run_with_hooks(inputs, fwd_hooks=[*keepers, *self.hooks], **self._options)
            )
        if self.hooks:
            self._check_hooks(min(layers))

    def run(
        self, layer: int, copies: int, hooks: Sequence[tuple[str, Callable[..., Any]]] = ()
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ...]:
        """Logits of each of `copies` copies, run from block `layer` on under `hooks`.

        The hooks see the copies one after the other along the batch axis, and come after those of
        every run.
        """
        state = self.states[layer]
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(_skip_blocks(self.model, layer))
            stack.enter_context(self._layout(copies))
            stack.enter_context(self._telling(copies))
            logits = self.model.run_with_hooks(
                state.repeat(copies, 1, 1),
                fwd_hooks=[*self.hooks, *hooks],
                start_at_layer=layer,
                **self._positions(copies),
                **self._options,
            )
            logits = self._read(logits)
        parts: tuple[Tensor, ...] = logits.split(len(state))
        return parts

    def difference(self, layer: int, copies: int = 2) -> float:
        """Largest difference of a run without an edit to the first pass, over the standard
        deviation of its logits. Rounding aside it is 0."""
        valid = torch.ones(self.logits.shape[:2], dtype=torch.bool, device=self.logits.device)
        if self.kept is None:
            valid = self.inputs.layout.mask("all").to(valid.device)
        parts = [part[valid] - self.logits[valid] for part in self.run(layer, copies)]
        return float(torch.stack(parts).abs().max() / self.logits[valid].float().std())

    def _read(self, logits: Tensor) -> Tensor:
        return logits if self.kept is None else self.kept.of(logits)

    def _check_hooks(self, layer: int) -> None:
        difference = self.difference(layer)
        if not difference <= TOLERANCE.get(self.logits.dtype, 0.2):
            raise InputError(
                f"Under corrupt_hooks the same run has other logits each time (they differ by "
                f"{difference:.3g} standard deviations), so no effect can be told from them: the "
                "hooks draw anew in each run, or treat the rows of a batch differently. Draw once, "
                "outside of the hook."
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep what the language model is told in the first pass."""

        def listen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.told = {name: value for name, value in kwargs.items() if name not in OWN}

        handle = _decoder(self.model).register_forward_pre_hook(listen, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _telling(self, copies: int) -> Iterator[None]:
        """Tell the language model the same, for `copies` copies."""
        told = {name: self._copy(name, value, copies) for name, value in self.told.items()}

        def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, **told}

        handle = _decoder(self.model).register_forward_pre_hook(tell, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _positions(self, copies: int) -> dict[str, Any]:
        """Positions for the whole model: it would take those of what it ran last."""
        told = self.told.get("position_ids")
        forward = self.model.original_model.forward
        if told is None or "position_ids" not in inspect.signature(forward).parameters:
            return {}
        return {"position_ids": self._copy("position_ids", told, copies)}

    def _copy(self, name: str, value: Any, copies: int) -> Any:
        """An argument of the language model for copies of the batch, one after the other."""
        if isinstance(value, Mapping):
            return {key: self._copy(name, x, copies) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(name, x, copies) for x in value)
        if not isinstance(value, Tensor) or value.ndim < 2:
            return value
        # Positions of several axes (time, height, width) come before the batch.
        axis = 1 if name == "position_ids" and value.ndim == 3 else 0
        if value.shape[axis] == 1 and len(self.inputs.input_ids) > 1:
            return value  # the same for all rows
        times = [copies if i == axis else 1 for i in range(value.ndim)]
        return value.repeat(times)

    @contextmanager
    def _layout(self, copies: int) -> Iterator[None]:
        """What every position is, for hooks per modality: there are no tokens to tell it by."""
        context = self.model.context
        before, context.explicit = context.explicit, self.inputs.layout.repeat(copies)
        try:
            yield
        finally:
            context.explicit = before


def _decoder(model: VisionLanguageBridge) -> Any:
    """The language model without its head."""
    return model.original_model.get_decoder()  # type: ignore[operator]


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
