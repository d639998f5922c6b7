"""What the model looks at, and what it is about to say, at each token that it writes.

Read while `generate` runs, so it is what really wrote: with and without the KV cache, greedy or
sampled, under any hooks and knock-outs. A token is written by the state of the position *before*
it: the attention and the lens of a token are those of that position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from transformer_lens.tools.analysis import logit_readout

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import check_path
from mm_lens.model.streams import resolve_layers, state_names

MADE = "The reading"


@dataclass(frozen=True, eq=False)
class Written:
    """What was written, token by token; all on the CPU.

    Rows are those of the prompts, each as often as sequences were returned for it. Layers are
    states: 0 enters block 0, l leaves block l - 1.

    Attributes:
        tokens: ids of what was written.
        length: how many of them each row has until it ended.
        layout: of the prompts.
        layers: states that the lens reads.
        probability: of each token, by the model.
        top_ids: the lens's top words, best first.
        lens: probability of the token that was written, by the lens.
        rank: its rank there, 0 for the top word.
        blocks: whose attention was read; none under sdpa.
        attention: to each position of the prompt, mean over the heads.
    """

    tokens: Int64[Tensor, "row step"]
    length: tuple[int, ...]
    layout: TokenLayout = field(repr=False)
    layers: tuple[int, ...]
    probability: Float32[Tensor, "row step"] = field(repr=False)
    top_ids: Int64[Tensor, "layer row step k"] = field(repr=False)
    lens: Float32[Tensor, "layer row step"] = field(repr=False)
    rank: Int64[Tensor, "layer row step"] = field(repr=False)
    blocks: tuple[int, ...]
    attention: Float32[Tensor, "block row step pos"] = field(repr=False)
    tokenizer: Any = field(repr=False)

    @property
    def text(self) -> list[str]:
        """What each row says."""
        rows = zip(self.tokens.tolist(), self.length, strict=True)
        return [self.tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in rows]

    def words(self, row: int = 0) -> list[str]:
        """The tokens of a row, spelled."""
        return [self.tokenizer.decode([i]) for i in self.tokens[row, : self.length[row]].tolist()]

    def looks(self, row: int = 0, blocks: Sequence[int] | None = None) -> Tensor:
        """Attention to each position of the prompt, mean over blocks, [step, pos], to be drawn.

        Args:
            row: of the texts.
            blocks: of `self.blocks`; None takes all.

        Raises:
            InputError: no attention was read, or not that of a block.
        """
        if not self.blocks:
            raise InputError(
                "No attention was read: under sdpa there is none. Load the model with "
                'mm_lens.load(..., attention="eager").'
            )
        wanted = self.blocks if blocks is None else tuple(blocks)
        if missing := [b for b in wanted if b not in self.blocks]:
            raise InputError(f"Attention was read at blocks {self.blocks}, not at {missing[0]}.")
        chosen = self.attention[[self.blocks.index(b) for b in wanted], row]
        return chosen.mean(0)[: self.length[row]]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each text, token and state that the lens read.

        Columns: row, step, word, probability; layer, lens_probability, lens_rank, lens_words; and
        image_attention, the share of its attention that the block before the state pays to the
        image (mean over heads; NaN at state 0 and where none was read).
        """
        visual = self.layout.mask("visual")
        rows = []
        for row, length in enumerate(self.length):
            words = self.words(row)
            for step in range(length):
                for k, layer in enumerate(self.layers):
                    block = layer - 1
                    seen = math.nan
                    if block in self.blocks:
                        weights = self.attention[self.blocks.index(block), row, step]
                        seen = float(weights[visual[row]].sum())
                    rows.append(
                        {
                            "row": row,
                            "step": step,
                            "word": words[step],
                            "probability": float(self.probability[row, step]),
                            "layer": layer,
                            "lens_probability": float(self.lens[k, row, step]),
                            "lens_rank": int(self.rank[k, row, step]),
                            "lens_words": [
                                self.tokenizer.decode([i])
                                for i in self.top_ids[k, row, step].tolist()
                            ],
                            "image_attention": seen,
                        }
                    )
        return pd.DataFrame(rows)


def read_written(
    model: VisionLanguageBridge,
    inputs: Inputs,
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
    **options: Any,
) -> Written:
    """Have the model write, and read it token by token.

    ```python
    written = mm_lens.looking.read_written(model, inputs, max_new_tokens=30)
    written.table
    mm_lens.drawing.explore_written(image, written).save("written.html")
    ```

    Attention is read where the model was loaded with `attention="eager"`. Memory: `steps × states ×
    d_model` and `steps × blocks × pos` for each row.

    Args:
        model: the model.
        inputs: prompts, padded on the left if at all.
        layers: states to read, negative ones from the end; None reads all.
        top_k: top words of the lens to keep.
        options: those of `generate`; by default greedy, 20 tokens.

    Raises:
        InputError: no such layer; beams are asked for, whose states belong to texts that are given
            up later; or an option changes what `generate` returns.
        MMLensError: the last state read through the lens does not give the model's logits.
    """
    check_inputs(model, inputs)
    require_whole("top_k", top_k, 1)
    if options.get("num_beams", 1) != 1:
        raise InputError(
            "With beams, states belong to texts that are given up later. Read greedy or sampled "
            "text: leave out num_beams=."
        )
    if taken := [x for x in ("output_logits", "return_type", "return_cache") if x in options]:
        raise InputError(f"read_written decides what generate returns: leave out {taken[0]}=.")
    n = model.cfg.n_layers
    wanted = resolve_layers(layers, n + 1)
    read = tuple(dict.fromkeys([*wanted, n]))
    held: dict[str, list[Tensor]] = {}
    hooks: list[NamedHook] = []
    names = state_names(n)
    hooks += [(names[layer], partial(_keep_last, held, names[layer])) for layer in read]
    blocks: tuple[int, ...] = ()
    if model.attention == "eager":
        blocks = tuple(b for b in range(n) if getattr(model.blocks[b], "attn", None) is not None)
        points = [f"blocks.{b}.attn.hook_pattern" for b in blocks]
        hooks += [(name, partial(_keep_looks, held, name, model, inputs)) for name in points]
    asked = {"do_sample": False, "max_new_tokens": 20, "verbose": False, **options}
    with model.hooks(fwd_hooks=hooks):
        found = model.generate(inputs, output_logits=True, **asked)
    tokens = found.sequences[:, inputs.input_ids.shape[1] :].cpu()
    logits = torch.stack(found.logits, 1).float().cpu()
    batch, steps = tokens.shape
    every = {layer: torch.stack(held[names[layer]], 1) for layer in read}
    check_path(
        logit_readout(model, every[n].flatten(0, 1)).values.float().cpu(), logits.flatten(0, 1)
    )
    top, lens, rank = [], [], []
    for layer in wanted:
        rows = every[layer]
        best = logit_readout(model, rows, top_k=top_k).top_ids
        own = logit_readout(model, rows, targets=tokens.to(rows.device), return_type="probs")
        assert best is not None
        assert own.target_ranks is not None
        top.append(best.cpu())
        lens.append(own.values[..., 0].float().cpu())
        rank.append(own.target_ranks[..., 0].long().cpu())
    copies = batch // inputs.layout.shape[0]
    rows_of = [row for row in range(inputs.layout.shape[0]) for _ in range(copies)]
    looks = [torch.stack(held[f"blocks.{b}.attn.hook_pattern"], 1) for b in blocks]
    return Written(
        tokens=tokens,
        length=tuple(_lengths(model, tokens, asked)),
        layout=inputs.layout.to("cpu").take(rows_of),
        layers=wanted,
        probability=logits.softmax(-1).gather(-1, tokens[..., None])[..., 0],
        top_ids=torch.stack(top),
        lens=torch.stack(lens),
        rank=torch.stack(rank),
        blocks=blocks,
        attention=torch.stack(looks)
        if looks
        else torch.zeros(0, batch, steps, inputs.layout.shape[1]),
        tokenizer=model.tokenizer,
    )


def _keep_last(held: dict[str, list[Tensor]], name: str, state: Tensor, hook: Any) -> None:
    """The state of the position that writes."""
    held.setdefault(name, []).append(state[:, -1].detach().clone())


def _keep_looks(
    held: dict[str, list[Tensor]],
    name: str,
    model: VisionLanguageBridge,
    inputs: Inputs,
    pattern: Tensor,
    hook: Any,
) -> None:
    """Attention of the position that writes to the prompt's; a window may keep the latest alone."""
    total = model.context.frame.place(inputs.layout, MADE).total
    weights = pattern[:, :, -1].detach().float().mean(1).cpu()
    whole = weights.new_zeros(len(weights), total)
    whole[:, total - weights.shape[-1] :] = weights
    held.setdefault(name, []).append(whole[:, : inputs.layout.shape[1]])


def _lengths(model: VisionLanguageBridge, tokens: Tensor, asked: dict[str, Any]) -> list[int]:
    """Tokens of each row up to the one that ended it."""
    if not asked.get("stop_at_eos", True):
        return [tokens.shape[1]] * len(tokens)
    stop = asked.get("eos_token_id")
    if stop is None:
        stop = getattr(model.cfg, "eos_token_id", None)
    if stop is None:
        stop = model.tokenizer.eos_token_id
    ends = torch.isin(tokens, torch.as_tensor(stop))
    return [int(row.int().argmax()) + 1 if bool(row.any()) else tokens.shape[1] for row in ends]
