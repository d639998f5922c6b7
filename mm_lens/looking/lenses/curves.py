"""How a reading goes over depth: entropy, and distance and rank to what the model says at the end.

For each token and state, read through the final norm and unembedding (or a lens before them):

- `entropy` of the distribution over the vocabulary, in nats;
- `kl`: the divergence from the model's own distribution to it, `KL(end || here)`, in nats;
- `rank`: of the word that the model itself puts first there, 0 for the top;
- `top`: how often it is the top word.

Each is the mean over pictures of the mean over a picture's tokens; intervals are over pictures. An
image token's "end" is what follows it in the model's own logits, which in training nobody asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.arguments import require_number, require_whole
from mm_lens.errors import InputError
from mm_lens.looking.sampling import Gathered, each_inputs, gather, mean_of_pictures
from mm_lens.looking.translating import check_lens, layers_of, translate
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logits import read_log_probs
from mm_lens.model.streams import resolve_layers

QUANTITIES = ("entropy", "kl", "rank", "top")


def lens_curves(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: Sequence[Any] | Mapping[str, Any] = ("visual", "text"),
    *,
    lens: Any = None,
    layers: Sequence[int] | None = None,
    most: int | None = None,
    chunk_size: int = 64,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Entropy, divergence, rank and share of top words over depth, for each group.

    Memory: states of all layers and tokens that are read; `chunk_size × d_vocab` logits.

    Args:
        model: in evaluation mode.
        samples: what it is run on.
        where: groups, or a mapping from names to groups, boxes or masks.
        lens: None for the logit lens; a `TunedLens`, a `JacobianLens`; or one for each group.
        layers: states, negative ones from the end; None takes all, or all of the lens.
        most: tokens of each row and group, drawn at random; None takes all.
        chunk_size: tokens that are read at a time.
        confidence: of the intervals.
        seed: of draws and intervals.

    Returns:
        A row for each group, layer and quantity: group, layer, quantity, value, low, high,
        n_pictures, n_tokens.

    Raises:
        InputError: no token of a group, or no such layer; the lens is of another model.
    """
    require_number("confidence", confidence, 0, 1)
    require_whole("chunk_size", chunk_size, 1)
    groups = dict(where) if isinstance(where, Mapping) else {str(g): g for g in where}
    kept = list(each_inputs(model, samples))
    n_states = model.cfg.n_layers + 1
    rows = []
    for name, group in groups.items():
        own = lens[name] if isinstance(lens, Mapping) else lens
        asked = layers if own is None or layers is not None else [*layers_of(own), n_states - 1]
        numbers = resolve_layers(asked, n_states)
        check_lens(own, numbers, n_states, model.cfg.d_model)
        found = gather(model, kept, group, sorted({*numbers, n_states - 1}), most=most, seed=seed)
        read = compare_to_end(model, found, numbers, own, chunk_size)
        for layer in numbers:
            for quantity, values in read[layer].items():
                value, low, high = mean_of_pictures(
                    values, found.picture, confidence=confidence, seed=seed
                )
                rows.append(
                    {
                        "group": name,
                        "layer": layer,
                        "quantity": quantity,
                        "value": value,
                        "low": low,
                        "high": high,
                        "n_pictures": found.n_pictures,
                        "n_tokens": len(found.picture),
                    }
                )
    if not rows:
        raise InputError("where names no group of tokens to read.")
    return pd.DataFrame(rows)


@torch.no_grad()
def compare_to_end(
    model: VisionLanguageBridge,
    found: Gathered,
    layers: Sequence[int],
    lens: Any,
    chunk_size: int,
) -> dict[int, dict[str, Float[Tensor, " n"]]]:
    """Each quantity of each token; by layer and name."""
    n_states = model.cfg.n_layers + 1
    parts: dict[int, list[Tensor]] = {k: [] for k in layers}
    for start in range(0, len(found.picture), chunk_size):
        here = slice(start, start + chunk_size)
        end = read_log_probs(model, found.states[n_states - 1][here])
        best = end.argmax(-1, keepdim=True)
        for k in layers:
            own = read_log_probs(model, translate(lens, found.states[k][here], k, n_states))
            of_best = own.gather(-1, best)
            rank = (own > of_best).sum(-1)
            numbers = [
                -(own.exp() * own).sum(-1),
                (end.exp() * (end - own)).sum(-1),
                rank,
                rank == 0,
            ]
            parts[k].append(torch.stack([x.float().cpu() for x in numbers]))
    return {
        k: dict(zip(QUANTITIES, torch.cat(values, 1), strict=True)) for k, values in parts.items()
    }
