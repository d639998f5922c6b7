"""Which forward pass is running, and what every position of it is.

A hook on the wrapped Hugging Face model notes the keyword arguments of each forward pass, however
it is called: through the bridge, by `generate`, or natively. There, too, prompts whose image is
missing are refused.

Threads do not see each other's passes, nor what another has bound.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mm_lens.errors import HookError, InputError, MMLensWarning
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import describe_difference
from mm_lens.model.families import Family, without_own
from mm_lens.model.families.placeholders import check_images
from mm_lens.model.inputs import is_text_only_meant
from mm_lens.model.running.generation import with_answer

FORGOTTEN = (
    "Was the image forgotten? Give it to prepare(text, image). If prompts without an image are "
    "meant, say so: prepare(text, None), or with model.text_only_allowed(): …"
)


@dataclass
class Selection:
    """The rows of one group in one forward pass: `positions` where `valid`, row by row.

    The tensors follow the activations to their devices (a model may be split over several).
    """

    positions: Int[Tensor, "batch n_max"]
    valid: Bool[Tensor, "batch n_max"]
    full: bool = field(init=False)

    def __post_init__(self) -> None:
        self.full = bool(self.valid.all())

    def on(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Batch index, positions and validity on the device of `x`."""
        if self.positions.device != x.device:
            self.positions, self.valid = self.positions.to(x.device), self.valid.to(x.device)
        batch = torch.arange(len(self.positions), device=x.device)
        return rearrange(batch, "batch -> batch 1"), self.positions, self.valid

    def gather(self, x: Shaped[Tensor, "batch pos *rest"]) -> Shaped[Tensor, "batch n_max *rest"]:
        """The rows of the group, zero where a row of the batch has fewer than `n_max`."""
        batch, positions, valid = self.on(x)
        rows = x[batch, positions]
        if self.full:
            return rows
        missing = rearrange(~valid, f"batch n -> batch n {'1 ' * (x.ndim - 2)}")
        return rows.masked_fill(missing, 0)

    def scatter(
        self, x: Shaped[Tensor, "batch pos *rest"], rows: Shaped[Tensor, "batch n_max *rest"]
    ) -> Shaped[Tensor, "batch pos *rest"]:
        """A copy of `x` with the rows of the group replaced; padding in `rows` is ignored."""
        batch, positions, valid = self.on(x)
        batch = repeat(batch, "batch 1 -> batch n", n=positions.shape[1])
        at = (batch[valid], positions[valid])
        return x.index_put(at, rows[valid].to(x.dtype))


class Frame:
    """One forward pass: its keyword arguments and, worked out when asked for, its layout."""

    def __init__(
        self, family: Family, inputs: Mapping[str, Any], explicit: TokenLayout | None
    ) -> None:
        self.family, self.inputs, self.explicit = family, inputs, explicit
        # Now: the layers fill the cache while the pass runs.
        past = inputs.get("past_key_values")
        self.decoding = past is not None and bool(past.get_seq_length() > 0)
        self._selections: dict[str, Selection | None] = {}
        self._fits: list[TokenLayout] = []  # found to be that of this pass

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        tokens = self.inputs.get("input_ids")
        start: Tensor = self.inputs["inputs_embeds"] if tokens is None else tokens
        return start.shape[0], start.shape[1]

    @cached_property
    def layout(self) -> TokenLayout:
        """Layout of the pass.

        Raises:
            HookError: it starts from embeddings, and no layout was given or one of another shape.
        """
        start = self._start()
        if start is None:
            return self.family.layout(self.inputs)
        if self.explicit is None:
            raise HookError(
                "A modality hook cannot tell visual from text positions in a forward pass that "
                "starts from embeddings (inputs_embeds, start_at_layer) or encoded images. Say "
                "which inputs they come from: `with model.bound(inputs): ...`."
            )
        batch, positions = start.shape[:2]
        layout = self._copied(self.explicit, start)
        if layout.shape != (batch, positions):
            raise HookError(
                f"The forward pass starts from embeddings of shape {(batch, positions)} [batch, "
                f"pos], but the bound inputs have {layout.shape}. Bind the inputs they come from."
            )
        return layout

    def _copied(self, layout: TokenLayout, start: Tensor) -> TokenLayout:
        """The layout of a pass of copies of the bound rows, if they can be told apart."""
        rows, (batch, positions) = layout.shape[0], start.shape[:2]
        if positions > layout.shape[1] and not start.is_floating_point():
            layout = with_answer(layout, positions - layout.shape[1])  # `generate` without cache
        copies, rest = divmod(batch, rows)
        if rest or copies < 2 or layout.shape[1] != positions:
            return layout
        if rows == 1:
            return layout.repeat(copies)
        if start.is_floating_point():
            return layout  # whose copy each row is, embeddings do not say
        # `generate` puts the beams of a row, or the sequences it returns for it, side by side.
        beams = layout.take([row for row in range(rows) for _ in range(copies)])
        there = start[:, : self.explicit.shape[1]] == self.family.image_token_id  # type: ignore[union-attr]
        alike = torch.equal(there, beams.mask("visual")[:, : there.shape[1]])
        return beams if alike else layout

    def _start(self) -> Tensor | None:
        """What the pass starts from, if it is not tokens and pixels."""
        tokens: Tensor | None = self.inputs.get("input_ids")
        if tokens is None:
            embeddings: Tensor = self.inputs["inputs_embeds"]
            return embeddings
        # `generate` of transformers encodes images first, and leaves out what they were.
        encoded = self.inputs.get("mm_encoder_outputs") and self.inputs.get("pixel_values") is None
        holds_images = encoded and bool((tokens == self.family.image_token_id).any())
        return tokens if holds_images else None

    def selection(self, group: str) -> Selection | None:
        """Rows of `group`; None if the pass has none."""
        if group not in self._selections:
            valid = self.layout.valid(group)
            self._selections[group] = (
                Selection(self.layout.positions(group), valid) if valid.any() else None
            )
        return self._selections[group]

    def fits(self, layout: TokenLayout) -> bool:
        """Whether this pass is of inputs with `layout`, or of copies of them, or they of it."""
        if not any(layout is known for known in self._fits):
            if describe_difference(self.layout, layout):
                return False
            self._fits.append(layout)
        return True

    def require(self, layout: TokenLayout, what: str) -> None:
        """Refuse to run what was made for other inputs, whose positions are other things.

        Args:
            layout: of the inputs that it was made for; a pass of copies of them will do.
            what: names it in the message.

        Raises:
            InputError: naming the first position that is not the same.
            HookError: the layout of the pass is unknown.
        """
        if self.shape[0] % layout.shape[0] or not self.fits(layout):
            raise InputError(
                f"{what} was made for other inputs than those of this forward pass: "
                f"{describe_difference(layout, self.layout)}. Make it for the inputs that are run."
            )


class _Passes(threading.local):
    """The forward passes of one thread."""

    def __init__(self) -> None:
        self.running: list[Frame] = []
        self.finished: Frame | None = None
        self.explicit: TokenLayout | None = None
        self.bound: Any = None
        self.text_only = False


class ForwardContext:
    """What the running forward pass is about: filled before it by a hook on the wrapped model.

    Passes may nest (a hook that runs the model). The last finished one is kept for the cache. A
    copy of the model starts with none: what runs here does not run there.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._passes, self._lock = _Passes(), threading.RLock()
        self._told: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"family": self.family}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ForwardContext.__init__(self, state["family"])

    @property
    def explicit(self) -> TokenLayout | None:
        """Layout for passes that start from embeddings (`bound`)."""
        return self._passes.explicit

    @explicit.setter
    def explicit(self, layout: TokenLayout | None) -> None:
        self._passes.explicit = layout

    @property
    def bound(self) -> Any:
        """What `model.bound(...)` holds, a `binding.Binding`; None outside of it."""
        return self._passes.bound

    @property
    def finished(self) -> Frame | None:
        """The last finished forward pass."""
        return self._passes.finished

    @property
    def _running(self) -> list[Frame]:
        return self._passes.running

    @property
    def text_only(self) -> bool:
        """Whether hooks of visual tokens pass over forward passes that have none."""
        return self._passes.text_only

    @text_only.setter
    def text_only(self, allowed: bool) -> None:
        self._passes.text_only = allowed

    def attach(self, model: torch.nn.Module) -> list[RemovableHandle]:
        """Watch the forward passes of the wrapped Hugging Face model."""
        return [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = {**kwargs, "input_ids": args[0]} if args else kwargs
        check_images(self.family, inputs)
        self._running.append(Frame(self.family, inputs, self.explicit))
        return args, without_own(kwargs)

    def _end(self, model: torch.nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self._running:  # not if `_begin` raised
            self._passes.finished = self._running.pop()

    @contextmanager
    def bind(self, binding: Any) -> Iterator[None]:
        """Inside, `binding` gives what calls lack, and the layout of those without tokens."""
        passes = self._passes
        before = passes.bound, passes.explicit
        passes.bound, passes.explicit = binding, binding.layout
        try:
            yield
        finally:
            passes.bound, passes.explicit = before

    @contextmanager
    def text_only_allowed(self, allowed: bool = True) -> Iterator[None]:
        """Have hooks of visual tokens pass over forward passes that have none."""
        before = self.text_only
        self.text_only = before or allowed
        try:
            yield
        finally:
            self.text_only = before

    def select(self, group: str, hook: str) -> Selection | None:
        """Rows of `group` in the running pass, for a hook that acts on them; None without any.

        Raises:
            HookError: there are none, outside of decoding, and nobody said that this is meant.
        """
        frame = self.frame
        found = frame.selection(group)
        if found is None and not (frame.decoding or self.text_only):
            tokens = frame.inputs.get("input_ids")
            if tokens is None or not is_text_only_meant(tokens):
                raise HookError(
                    f"{hook} is of {group} tokens, but no row of this forward pass has any: the "
                    f"hook would do nothing. {FORGOTTEN}"
                )
            self.tell(
                f"A hook of {group} tokens ran into inputs without any, and did nothing there. If "
                "this is meant, say so: with model.text_only_allowed(): …"
            )
        return found

    def tell(self, message: str) -> None:
        """Warn, once for a model: what Python itself keeps of it is lost between two passes."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, MMLensWarning, stacklevel=4)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """One call at a time; afterwards forget what it left running.

        Hooks are the model's: those of a call in one thread would see, and edit, the passes of
        another. And torch does not call `_end` after Ctrl-C.
        """
        with self._lock:
            depth = len(self._running)
            try:
                yield
            except IndexError as error:
                if "index out of range in self" not in str(error):  # torch's, of a token table
                    raise
                raise InputError(
                    "There is no such token: an id is below 0 or beyond the model's vocabulary. "
                    "The tokens are of another tokenizer, or no tokens."
                ) from error
            finally:
                del self._running[depth:]

    @property
    def is_running(self) -> bool:
        """Whether there is a running forward pass."""
        return bool(self._running)

    @property
    def frame(self) -> Frame:
        """The running forward pass.

        Raises:
            HookError: there is none.
        """
        if not self._running:
            raise HookError(
                "A modality hook fired outside of a forward pass of the whole model, so which "
                "position is what is unknown. Call the model, not one of its blocks."
            )
        return self._running[-1]
