"""Which forward pass is running, and what every position of it is.

A hook on the wrapped Hugging Face model notes the keyword arguments of each forward pass, however
it is called: through the bridge, by `generate`, or natively. There, too, prompts whose image is
missing are refused.

Threads do not see each other's passes, nor what another has bound.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle

from mm_lens.errors import HookError, InputError, MMLensWarning
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.families import Family, without_own
from mm_lens.model.families.known import require_match
from mm_lens.model.inputs import is_text_only_meant
from mm_lens.model.running.frames import Frame, Selection

FORGOTTEN = (
    "Was the image forgotten? Give it to prepare(text, image). If prompts without an image are "
    "meant, say so: prepare(text, None), or with model.text_only_allowed(): …"
)


class _Passes(threading.local):
    """The forward passes of one thread."""

    def __init__(self) -> None:
        self.running: list[Frame] = []
        self.finished: Frame | None = None
        self.explicit: TokenLayout | None = None
        self.bound: Any = None
        self.text_only = False
        self.writing = False
        self.prompts: Any = WeakKeyDictionary()  # what filled each cache


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
        require_match(self.family, inputs)
        passes, past = self._passes, inputs.get("past_key_values")
        prompt = None if past is None else passes.prompts.get(past)
        self._running.append(Frame(self.family, inputs, self.explicit, passes.writing, prompt))
        return args, without_own(kwargs)

    def _end(self, model: torch.nn.Module, args: tuple[Any, ...], output: object) -> None:
        if not self._running:  # `_begin` raised
            return
        frame = self._passes.finished = self._running.pop()
        past = frame.inputs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if past is None else past
        if cache is not None and not frame.decoding:
            # Without the cache itself, which could else never be freed.
            kept = {k: v for k, v in frame.inputs.items() if k != "past_key_values"}
            self._passes.prompts[cache] = Frame(frame.family, kept, frame.explicit, frame.writing)

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
    def writes(self) -> Iterator[None]:
        """Inside, passes are those of `generate`: what it makes of one row lies side by side."""
        before, self._passes.writing = self._passes.writing, True
        try:
            yield
        finally:
            self._passes.writing = before

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
