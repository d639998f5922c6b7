"""Directions to steer along: between the means of two sets, or the largest spread of one.

A direction that tells two sets apart is not yet one that the model uses: steer along it, and along
directions at random of the same length, before saying so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.arguments import require_whole
from mm_lens.causal.ablation import mean_activation
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_blocks


def difference_of_means(
    model: VisionLanguageBridge,
    samples: Iterable[Inputs],
    others: Iterable[Inputs],
    group: Any = "visual",
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
) -> dict[int, Float[Tensor, " *d"]]:
    """Mean over a group's tokens in `samples` less that in `others`, for each layer.

    What a picture does to the text: `samples` of questions with their pictures, `others` of the
    same questions without (`model.prepare(question, None)`), `group="last"`.

    Raises:
        InputError: one of the two has no token of the group; no layer is named.
    """
    options: dict[str, Any] = {"layers": layers, "hook": hook}
    with model.text_only_allowed():
        one = mean_activation(model, samples, group, **options)
        other = mean_activation(model, others, group, **options)
    return {k: one[k] - other[k] for k in one}


def principal_directions(
    model: VisionLanguageBridge,
    samples: Iterable[Inputs],
    group: Any = "visual",
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
    n: int = 1,
) -> dict[int, Float[Tensor, "n d"]]:
    """Directions in which a group's tokens spread most about their mean, of length 1, by layer.

    Memory: `d × d` for each layer, whatever the number of samples. A sign is arbitrary: here the
    largest entry is positive.

    Args:
        model: the model.
        samples: what it is run on.
        group: whose tokens.
        layers: blocks, negative ones from the end.
        hook: short name of the hook point; heads, where it has some, stand side by side.
        n: how many, the widest spread first.

    Raises:
        InputError: there are fewer than `n` + 1 tokens, or more directions are asked for than the
            states have dimensions.
    """
    require_whole("n", n, 1)
    numbers = resolve_blocks(model, hook, layers)
    names = {k: str(get_act_name(hook, k)) for k in numbers}
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    count = 0
    for inputs in [samples] if isinstance(samples, Inputs) else samples:
        check_inputs(model, inputs)
        mask = group_mask(inputs.layout, group)
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=[*names.values()])
        for k, name in names.items():
            rows = cache[name][mask.to(cache[name].device)].flatten(1).double()
            sums[k] = sums.get(k, 0) + rows.sum(0)
            squares[k] = squares.get(k, 0) + einsum(rows, rows, "n a, n b -> a b")
        count += int(mask.sum())
    width = len(next(iter(sums.values()))) if sums else 0
    if count < n + 1 or n > width:
        raise InputError(
            f"{count} tokens of {width} numbers have no {n} principal directions. Pass more "
            "samples, or ask for fewer."
        )
    found = {}
    for k in numbers:
        mean = sums[k] / count
        _, vectors = torch.linalg.eigh(squares[k] / count - torch.outer(mean, mean))
        top = vectors.flip(1)[:, :n].T
        signs = top.gather(1, top.abs().argmax(1, keepdim=True)).sign()
        found[k] = (top * signs).float()
    return found
