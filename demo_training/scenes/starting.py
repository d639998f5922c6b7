"""Where the language model starts from: heads that look for what is alike, and copy it.

From plain random weights a model of this size answers at chance for a thousand steps: that a word
of the question is to be compared with image tokens has first to be stumbled upon. So queries and
keys start as the same projection (what is alike attends to what is alike), and values are put back
where they came from (after Trockman and Kolter, "Mimetic initialization of self-attention layers",
2023, arXiv 2305.09828); the head that reads words out starts as the one that reads them in. A word
is most like itself: so words start with a direction in common, and what has it looks for objects.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import MistralForCausalLM

ALIKE = 1.5
"""How strongly queries look for keys like them."""
SCALE = 0.3
"""Of the words' embeddings: a few steps of the optimiser must not turn them around."""
OBJECTS = 3.0
"""How strongly words look for objects."""
COPIED = 1.0
"""How much of what is looked at is taken over."""


def _frames(heads: int, d_head: int, width: int) -> Tensor:
    """For each head, some orthonormal directions, as many as it has dimensions."""
    return torch.stack([torch.linalg.qr(torch.randn(width, d_head))[0].T for _ in range(heads)])


@torch.no_grad()
def start(language: MistralForCausalLM, thing: Float[Tensor, " d"]) -> None:
    """Set embeddings, attention and head; `thing` is what all objects have in common."""
    words = language.get_input_embeddings().weight
    words.copy_(SCALE * torch.randn_like(words))
    language.lm_head.weight.copy_(words / 2)
    common = SCALE * torch.randn_like(words[0])
    words += common
    bridge = OBJECTS * normalize(thing, dim=0)[:, None] * normalize(common, dim=0)
    config = language.config
    shared = config.num_attention_heads // config.num_key_value_heads
    for layer in language.model.layers:
        attention = layer.self_attn
        alike, copied = (
            _frames(config.num_key_value_heads, config.head_dim, config.hidden_size)
            for _ in range(2)
        )
        _set(attention.k_proj, ALIKE * rearrange(alike, "head d width -> (head d) width"))
        queries = alike + alike @ bridge
        _set(attention.q_proj, ALIKE * repeat(queries, "h d width -> (h s d) width", s=shared))
        _set(attention.v_proj, rearrange(copied, "head d width -> (head d) width"))
        back = repeat(copied, "h d out -> out (h s d)", s=shared)
        _set(attention.o_proj, COPIED / shared * back)


def _set(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight.copy_(weight + 0.02 * torch.randn_like(weight))
