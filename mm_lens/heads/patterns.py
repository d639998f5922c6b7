"""An edit of attention patterns that knows which queries and keys it was made for.

In a prompt, in steps of decoding behind it, and in copies of its rows side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mm_lens.errors import HookError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.writing import reach


class PatternEdit:
    """A hook on a block's pattern."""

    def __init__(
        self,
        model: VisionLanguageBridge,
        inputs: Inputs,
        change: Callable[..., Tensor],
        keys: Sequence[Any],
        *,
        query: Any,
        heads: Sequence[int],
        what: str,
    ) -> None:
        """Keep what it is for.

        Args:
            model: the model.
            inputs: what it is run on.
            change: from the patterns of the heads [batch, head, query, key] and a mask
                [batch, 1, 1, key] for each of `keys` to new patterns.
            keys: groups or masks of positions.
            query: who looks.
            heads: their numbers.
            what: names it in a message.
        """
        self.model, self.layout, self.heads = model, inputs.layout, list(heads)
        self.change, self.keys, self.query, self.what = change, keys, query, what

    def __call__(self, pattern: Tensor, hook: Any) -> Tensor:
        """The pattern, changed where these queries look."""
        place = self.model.context.frame.place(self.layout, self.what)
        if pattern.shape[-1] != place.total:
            raise HookError(
                f"{hook.name} sees {pattern.shape[-1]} of {place.total} positions: the cache has "
                "forgotten some, and which keys are meant is unknown. Write fewer tokens, or "
                "without a cache (use_past_kv_cache=False)."
            )
        rows = place.rows.to(pattern.device)
        looks = place.of(reach(self.layout, self.query, place.total)).to(pattern.device)
        keys = [
            reach(self.layout, key, place.total).to(pattern.device)[rows][:, None, None]
            for key in self.keys
        ]
        part = pattern[:, self.heads]
        out = pattern.clone()
        new = self.change(part, *keys).to(pattern.dtype)
        out[:, self.heads] = torch.where(looks[:, None, :, None], new, part)
        return out
