"""What the model would write if it could not see something: one call, beside what it writes.

The tokens of a region are hidden from all others in every block, in the prompt and in each step of
decoding (`mm_lens.knockout`). What other tokens know of the region nevertheless is what the vision
tower told them: each of its patches sees the whole picture. Cover the region in the picture
(`mm_lens.corruptions`) to take that away as well, and compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mm_lens.causal.knockout import knockout
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs

RETURNED = ("output_logits", "return_type", "return_input_tokens", "return_cache")
"""Arguments of `generate` that change what it returns."""


@dataclass(frozen=True)
class Rewritten:
    """What was written with everything in sight, and what without.

    Attributes:
        plain, without: texts, one for each row (or returned sequence).
        plain_tokens, tokens: of these, prompts left out.
    """

    plain: tuple[str, ...]
    without: tuple[str, ...]
    plain_tokens: Int[Tensor, "row plain"] = field(repr=False)
    tokens: Int[Tensor, "row written"] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each text: plain, without, changed, and the first token that is another
        (counted from 0; -1 if none is)."""
        length = min(self.plain_tokens.shape[1], self.tokens.shape[1])
        differ = self.plain_tokens[:, :length] != self.tokens[:, :length]
        first = torch.where(differ.any(1), differ.int().argmax(1), -1)
        if self.plain_tokens.shape[1] != self.tokens.shape[1]:
            first[first < 0] = length
        return pd.DataFrame(
            {
                "plain": self.plain,
                "without": self.without,
                "changed": (first >= 0).tolist(),
                "first_difference": first.tolist(),
            }
        )


def write_without(
    model: VisionLanguageBridge,
    inputs: Inputs,
    key: Any = "visual",
    *,
    query: Any = "all",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Rewritten:
    """Write with and without `key` in sight of `query`.

    ```python
    mm_lens.causal.write_without(model, inputs, mm_lens.regions.Box(10, 10, 40, 60)).table
    ```

    Args:
        model: the model.
        inputs: prompts with images, padded on the left if at all.
        key: what is not seen: a group, a `Box` in pixels, a mask of pixels or positions.
        query: by whom: "all" (of each other token, image tokens too), "text" (image tokens still
            see it), "written" (only what is written does not), …
        layers: blocks; None takes all.
        heads: heads; None takes all.
        seed: of sampling: both texts are drawn with the same.
        options: those of `generate`; by default greedy, 20 tokens.

    Raises:
        InputError: see `mm_lens.knockout`; an option changes what `generate` returns.
    """
    if taken := [name for name in RETURNED if name in options]:
        raise InputError(
            f"write_without decides itself what generate returns: leave out {taken[0]}=."
        )
    asked = {"do_sample": False, "max_new_tokens": 20, "verbose": False, **options}

    def write() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found: Tensor = model.generate(inputs, return_type="tokens", **asked)
        return found[:, inputs.input_ids.shape[1] :].cpu()

    plain = write()
    cut: dict[str, Any] = {"layers": layers, "heads": heads, "keep_self": True}
    with knockout(model, inputs, query=query, key=key, **cut):
        without = write()
    texts = [model.tokenizer.batch_decode(x, skip_special_tokens=True) for x in (plain, without)]
    return Rewritten(tuple(texts[0]), tuple(texts[1]), plain, without)
