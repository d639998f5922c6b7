"""Gradients to the tokens: × input, integrated, smoothed, and Grad-CAM.

All attribute a number (a difference of logits, say) to the stream that enters a block, token by
token; block 0's are the embeddings, image features included. With `x` the state of a token, `b` its
baseline and `g` the gradient:

- *gradient × input*: `g(x)·(x - b)`, what the number loses if it were linear (Shrikumar et al.
  2016, arXiv 1605.01713).
- *integrated gradients*: the mean of `g` along the straight line from `b` to `x`, times `x - b`
  (Sundararajan et al. 2017, arXiv 1703.01365). The values add up to the number less what it is at
  the baseline (*completeness*); how far they do is `Attribution.gap`.
- *SmoothGrad*: the mean of `g` around `x`, times `x - b` (Smilkov et al. 2017, arXiv 1706.03825).
- *Grad-CAM*: `max(0, w·x)`, `w` the mean of `g` over the tokens (Selvaraju et al. 2017, arXiv
  1610.02391).

The baseline is what "not there" means, and decides what is found. Zero is a poor one: a norm takes
its length away, so that half of a token says all that the token says, and the whole change lies in
the last moment before zero.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_number, require_whole
from mm_lens.attribution.result import Attribution
from mm_lens.attribution.running import Differentiated
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logit_metrics import LogitMetric

Baseline: TypeAlias = "Literal['mean', 'zero'] | Float[Tensor, '*batch_pos d_model']"
"""`"mean"`: each token's is the mean of the group's tokens in its row; or states that fit
[batch, pos, d_model]."""

COMPLETE = 0.05
"""Largest gap of integrated gradients, over what they should add up to, without a warning."""


def gradient_input(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    layer: int = 0,
    baseline: Baseline = "mean",
) -> Attribution:
    """Gradient × input; one forward and one backward pass.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        metric: from logits [batch, pos, d_vocab] to one number for each row; see `mm_lens.answers`.
        where: which tokens: a group, `"last"`, a `Box` or a mask.
        layer: block whose input is attributed, negative ones from the end.
        baseline: what the tokens are compared with.

    Raises:
        InputError: no such token or layer; the metric has no gradient; the baseline does not fit.
    """
    run, mask = _begin(model, inputs, metric, where, layer)
    states, gradient, value = run.run()
    distance = states - baseline_states(baseline, states, mask)
    return _result("gradient × input", (gradient * distance).sum(-1), mask, inputs, value)


def integrated_gradients(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    layer: int = 0,
    baseline: Baseline = "mean",
    steps: int = 32,
) -> Attribution:
    """Integrated gradients; `steps` + 2 forward passes, `steps` of them with a backward pass.

    The integral is that of Gauss and Legendre. A warning says where the values do not add up.

    Args:
        model: see `gradient_input`.
        inputs: see `gradient_input`.
        metric: see `gradient_input`.
        where: see `gradient_input`.
        layer: see `gradient_input`.
        baseline: see `gradient_input`.
        steps: points of the line at which the gradient is taken.

    Raises:
        InputError: see `gradient_input`.
    """
    require_whole("steps", steps, 1)
    run, mask = _begin(model, inputs, metric, where, layer)
    states, _, value = run.run()
    start = torch.where(mask[..., None], baseline_states(baseline, states, mask), states)
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = torch.zeros_like(states)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        _, gradient, _ = run.run(partial(_stand_in, start + float(point) * (states - start)))
        total += float(weight) * gradient
    _, _, empty = run.run(partial(_stand_in, start))
    found = _result(
        "integrated gradients", (total * (states - start)).sum(-1), mask, inputs, value, empty
    )
    assert found.gap is not None
    assert found.baseline is not None
    whole = (found.metric - found.baseline).abs()
    if bool((found.gap.abs() > COMPLETE * whole.clamp(min=1e-6)).any()):
        row = int((found.gap.abs() / whole.clamp(min=1e-6)).argmax())
        warnings.warn(
            f"Integrated gradients do not add up in row {row}: their sum misses the change of the "
            f"metric by {float(found.gap[row]):.3g} of {float(whole[row]):.3g}. Take more steps, "
            "or a baseline that is nearer to what the model sees than zero.",
            MMLensWarning,
            stacklevel=2,
        )
    return found


def smooth_grad(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    layer: int = 0,
    baseline: Baseline = "mean",
    noise: float = 0.1,
    n: int = 16,
    seed: int = 0,
) -> Attribution:
    """SmoothGrad × input; `n` + 1 forward and backward passes.

    Args:
        model: see `gradient_input`.
        inputs: see `gradient_input`.
        metric: see `gradient_input`.
        where: see `gradient_input`.
        layer: see `gradient_input`.
        baseline: see `gradient_input`.
        noise: standard deviation, as a share of that of the tokens' entries in the row.
        n: draws.
        seed: of the noise.

    Raises:
        InputError: see `gradient_input`.
    """
    require_whole("n", n, 1)
    require_number("noise", noise, 0)
    run, mask = _begin(model, inputs, metric, where, layer)
    states, _, value = run.run()
    generator = derive_generator(seed, "smooth_grad")
    width = torch.stack(
        [x[m].float().std() for x, m in zip(states, mask, strict=True)]
    ).nan_to_num()
    total = torch.zeros_like(states)
    for _ in range(n):
        drawn = torch.randn(states.shape, generator=generator).to(states)
        moved = states + noise * rearrange(width, "batch -> batch 1 1").to(states) * drawn
        _, gradient, _ = run.run(partial(_stand_in, torch.where(mask[..., None], moved, states)))
        total += gradient / n
    distance = states - baseline_states(baseline, states, mask)
    return _result("SmoothGrad", (total * distance).sum(-1), mask, inputs, value)


def grad_cam(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    where: Any = "visual",
    *,
    layer: int = -1,
) -> Attribution:
    """Grad-CAM of the stream that enters a block; one forward and one backward pass.

    Args:
        model: see `gradient_input`.
        inputs: see `gradient_input`.
        metric: see `gradient_input`.
        where: see `gradient_input`.
        layer: see `gradient_input`. Behind the last block but one image tokens no longer reach the
            answer.

    Raises:
        InputError: see `gradient_input`.
    """
    run, mask = _begin(model, inputs, metric, where, layer)
    states, gradient, value = run.run()
    inside = mask[..., None].to(states.dtype)
    weights = (gradient * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    return _result("Grad-CAM", (weights * states).sum(-1).relu(), mask, inputs, value)


def _stand_in(given: Tensor, own: Tensor) -> Tensor:
    """States in the place of those of the run."""
    return given


def _begin(
    model: VisionLanguageBridge, inputs: Inputs, metric: LogitMetric, where: Any, layer: int
) -> tuple[Differentiated, Bool[Tensor, "batch pos"]]:
    run = Differentiated(model, inputs, metric, layer)
    mask = group_mask(inputs.layout, where)
    if not bool(mask.any()):
        raise InputError(f"These inputs hold no position of {where!r} to attribute to.")
    return run, mask


def baseline_states(
    baseline: Any, states: Float[Tensor, "batch pos d"], mask: Bool[Tensor, "batch pos"]
) -> Tensor:
    """What the tokens are compared with, of a shape that fits the states."""
    if isinstance(baseline, str) and baseline == "zero":
        return torch.zeros_like(states)
    if isinstance(baseline, str) and baseline == "mean":
        inside = mask[..., None].to(states.dtype)
        return (states * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
    if not isinstance(baseline, Tensor):
        raise InputError(f'baseline is "mean", "zero" or a tensor of states, not {baseline!r}.')
    try:
        return baseline.to(states).expand(states.shape)
    except RuntimeError as error:
        raise InputError(
            f"The baseline is of shape {tuple(baseline.shape)}, and the states of "
            f"{tuple(states.shape)} [batch, pos, d_model]: it does not fit them."
        ) from error


def _result(
    method: str,
    values: Float[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    inputs: Inputs,
    value: Tensor,
    empty: Tensor | None = None,
) -> Attribution:
    shown = values.masked_fill(~mask.to(values.device), torch.nan).float().cpu()
    rest = None if empty is None else empty.float().cpu()
    return Attribution(method, shown, inputs.layout.to("cpu"), value.float().cpu(), rest)
