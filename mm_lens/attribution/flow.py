"""Attention carried through all blocks: rollout, and relevance weighted by gradients; or of one.

The first two multiply one matrix [query, key] for each block, `A` the attention of its heads:

- *rollout*: `½ mean(A) + ½ I`, as if values and MLPs handed on what they get (Abnar and Zuidema
  2020, arXiv 2005.00928). It knows no answer: the map is the same whatever is asked.
- *relevance*: `I + mean(max(0, ∇A ⊙ A))`, the gradient of a number of your choice (Chefer et al.
  2021, arXiv 2103.15679, rule for self-attention).

`attention_attribution` is of one block: what its attention brings to the number, by the tokens that
are looked at (Hao et al. 2021, arXiv 2004.11207).

Memory: `blocks × batch × heads × pos²`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from mm_lens.arguments import require_whole
from mm_lens.attribution.result import Attribution
from mm_lens.attribution.running import differentiate_points, evaluate, evaluate_rows
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.parts.freezing import frozen
from mm_lens.model.running.logit_metrics import LogitMetric
from mm_lens.model.streams import resolve_layers


def attention_rollout(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Any = "visual",
    *,
    query: Any = "last",
) -> Attribution:
    """Attention rollout from the queries, of which the mean is taken, to each token; one pass.

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        where: which tokens.
        query: who looks: `"last"`, a group or a mask.

    Raises:
        InputError: there are no patterns; no token, or no query in some row.
    """
    points = _patterns(model, inputs)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=[*points])
    size = inputs.layout.shape[1]
    total: Tensor | None = None
    for name in points:
        mean = cache[name].mean(1)
        step = (mean + torch.eye(size).to(mean)) / 2
        # Rows of padding attend to nothing, and stay zero off the diagonal.
        step = step / step.sum(-1, keepdim=True)
        total = step if total is None else step @ total
    assert total is not None
    return _result("attention rollout", total, inputs, where, query, None)


def relevance(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    query: Any = "last",
) -> Attribution:
    """Relevance of each token for a metric; one forward and one backward pass.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        metric: from logits to one number for each row; see `mm_lens.answers`.
        where: which tokens.
        query: where the metric is read: mostly `"last"`.

    Raises:
        InputError: there are no patterns; no token, or no query in some row; the metric has no
            gradient.
    """
    points = _patterns(model, inputs)
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    patterns, gradients, value = differentiate_points(model, inputs, metric, points)
    first = patterns[points[0]]
    total = torch.eye(first.shape[-1]).to(first).expand(len(first), -1, -1)
    for name in points:
        step = (gradients[name] * patterns[name]).relu().mean(1)
        total = total + step @ total
    return _result("relevance", total, inputs, where, query, value)


def attention_attribution(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    layer: int,
    query: Any = "all",
    steps: int = 16,
) -> Attribution:
    """Integrated gradients of the attention of one block: a path from no attention to its own.

    Hao et al. 2021 (arXiv 2004.11207): `A ∫ dF(αA)/d(αA) dα` over α from 0 to 1, summed over heads;
    over all queries and keys it adds up to what the metric loses without the block's attention.
    `steps` forward and backward passes, Gauss-Legendre.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        metric: from logits to one number for each row; see `mm_lens.answers`.
        where: which tokens are looked at.
        layer: block, negative ones from the end.
        query: who looks: a group, `"last"` or a mask; of several the sum is taken.
        steps: points on the path.

    Raises:
        InputError: there are no patterns; no such block, token or query; the metric has no
            gradient.
    """
    name = _patterns(model, inputs)[resolve_layers([layer], model.cfg.n_layers)[0]]
    require_whole("steps", steps, 1)
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    points, weights = np.polynomial.legendre.leggauss(steps)
    total: Tensor | None = None
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        held: list[Tensor] = []

        def scale(pattern: Tensor, hook: Any, held: list[Tensor] = held, at: Any = point) -> Tensor:
            held.extend([pattern.detach(), (float(at) * pattern.detach()).requires_grad_(True)])
            return held[1]

        with frozen(model):
            logits = model.run_with_hooks(inputs, fwd_hooks=[(name, scale)])
            value = evaluate(metric, logits, len(inputs.input_ids))
            (gradient,) = torch.autograd.grad(value.sum(), held[1])
        part = float(weight) * (held[0] * gradient).sum(1)
        total = part if total is None else total + part
    assert total is not None
    looks = group_mask(inputs.layout, query).sum(1, keepdim=True).to(total)
    with torch.no_grad():
        whole = evaluate_rows(metric, model(inputs), len(inputs.input_ids))
    summed = total * rearrange(looks, "batch 1 -> batch 1 1")
    return _result("attention attribution", summed, inputs, where, query, whole)


def _patterns(model: VisionLanguageBridge, inputs: Inputs) -> list[str]:
    check_inputs(model, inputs)
    model.report.require("Attention carried through the blocks", "pattern")
    blocks = range(model.cfg.n_layers)
    without = [b for b in blocks if getattr(model.blocks[b], "attn", None) is None]
    if without:
        raise InputError(
            f"Block {without[0]} has no attention: it mixes positions in another way, which "
            "attention carried through the blocks would miss."
        )
    return [f"blocks.{b}.attn.hook_pattern" for b in blocks]


def _result(
    method: str,
    total: Float[Tensor, "batch query key"],
    inputs: Inputs,
    where: Any,
    query: Any,
    value: Tensor | None,
) -> Attribution:
    looks = group_mask(inputs.layout, query).to(total.device)
    mask = group_mask(inputs.layout, where)
    for name, what, found in (("query", query, looks), ("where", where, mask)):
        if not bool(found.any(1).all() if name == "query" else found.any()):
            raise InputError(f"These inputs hold no position of {name}={what!r}.")
    weight = looks.to(total.dtype) / looks.sum(1, keepdim=True)
    values = einsum(weight, total, "batch query, batch query key -> batch key")
    shown = values.masked_fill(~mask.to(values.device), torch.nan).float().cpu()
    metric = torch.full((len(total),), torch.nan) if value is None else value.float().cpu()
    return Attribution(method, shown, inputs.layout.to("cpu"), metric)
