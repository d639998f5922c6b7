"""Tokens as texts, also of what `prepare` returns."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from mm_lens.model.inputs import Inputs


class Spelled(TransformerBridge):
    """What is put on a `TransformerBridge` for it."""

    def to_str_tokens(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """As `TransformerBridge.to_str_tokens`; `input` may also be what `prepare` returns.

        An image token is its placeholder; of several rows, a list for each.
        """
        if not isinstance(input, Inputs):
            return super().to_str_tokens(input, *args, **kwargs)
        rows = [super(Spelled, self).to_str_tokens(row) for row in input.input_ids]
        return rows if len(rows) > 1 else rows[0]
