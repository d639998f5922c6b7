"""TransformerLens's Jacobian lens, fitted with images.

`JacobianLens.fit` takes strings, and a model that is shown no picture; here prepared inputs are
what it is fitted to. The estimator is the same (Gurnee et al. 2026): the mean over rows, and over
the source positions `t` of a row, of the sum over target positions `t' ≥ t` of `∂h_last(t') /
∂h_l(t)`. Which positions are sources is yours to say: a lens of image tokens says what these do to
what follows, one of text tokens what those do. What is returned is TransformerLens's own class:
read it with `visual_logit_lens(lens=…)` or `lens.readout` under `model.bound`, steer with it, save
it.

Cost: for each batch one forward and `d_model` backward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.tools.analysis import JacobianLens

from mm_lens.errors import InputError, MMLensError
from mm_lens.layout.groups import group_mask, last_position
from mm_lens.looking.sampling import each_inputs
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.parts.freezing import frozen
from mm_lens.model.streams import resolve_layers


def fit_jacobian_lens(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: Any = "visual",
    *,
    target: Any = "all",
    layers: Sequence[int] | None = None,
    corpus: str,
    progress: bool = False,
) -> JacobianLens:
    """Fit a Jacobian lens to prepared inputs.

    ```python
    lens = fit_jacobian_lens(model, batches, "visual", corpus="easy-vqa, 100 questions")
    visual_logit_lens(model, inputs, lens=lens).words()
    ```

    Args:
        model: in evaluation mode, in float32 for the best estimate.
        samples: what it is run on; every row counts the same.
        where: source positions; the last position of a row is none, as in TransformerLens.
        target: target positions whose change is counted; the last position of a row is none, but
            for `"last"`.
        layers: states, negative ones from the end, without 0 and the last; None takes all of these.
            TransformerLens counts blocks: state l is its layer l - 1.
        corpus: what the samples are, for the record.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no such state; a row has no source or no target position; nothing to fit to.
        MMLensError: this model is none that TransformerLens's lens reads.
    """
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    n = model.cfg.n_layers
    numbers = resolve_layers(range(1, n) if layers is None else layers, n + 1)
    if wrong := [k for k in numbers if k in (0, n)]:
        raise InputError(
            f"The Jacobian lens reads what leaves a block, the last one aside: states 1 to "
            f"{n - 1}, not {wrong[0]}."
        )
    total = {k: torch.zeros(model.cfg.d_model, model.cfg.d_model) for k in numbers}
    rows = 0
    for inputs in each_inputs(model, samples):
        last = last_position(inputs.layout)
        source = group_mask(inputs.layout, where) & ~last
        aims = group_mask(inputs.layout, target)
        if target != "last":
            aims = aims & ~last
        for name, mask in (("where", source), ("target", aims)):
            if not bool(mask.any(1).all()):
                raise InputError(
                    f"Row {int((~mask.any(1)).nonzero()[0])} has no position of {name}=."
                )
        for k, matrix in _sum_rows(model, inputs, numbers, source, aims, progress).items():
            total[k] += matrix
        rows += len(inputs.input_ids)
    if not rows:
        raise InputError("There are no samples to fit a lens to.")
    told = {
        "estimator": "jacobian_lens",
        "model_name": getattr(model.cfg, "model_name", None),
        "corpus": corpus,
        "fitted_with": "mm_lens, with images",
        "source_positions": where if isinstance(where, str) else "a mask or box",
        "target_positions": target if isinstance(target, str) else "a mask or box",
        "target_layer": n - 1,
    }
    lens = JacobianLens(
        {k - 1: matrix / rows for k, matrix in total.items()},
        n_prompts=rows,
        d_model=model.cfg.d_model,
        metadata=told,
    )
    try:
        return lens.validate_model(model)
    except ValueError as error:
        raise MMLensError(
            f"TransformerLens's Jacobian lens cannot read this model: {error}"
        ) from error


def _sum_rows(
    model: VisionLanguageBridge,
    inputs: Inputs,
    layers: Sequence[int],
    source: Bool[Tensor, "batch pos"],
    target: Bool[Tensor, "batch pos"],
    progress: bool,
) -> dict[int, Float[Tensor, "d d"]]:
    """Sum over rows of each row's matrix: one backward pass for each dimension at the end."""
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> Tensor:
        layer = int(hook.name.split(".")[1]) + 1
        if layer == min(layers):
            tensor = tensor.detach().requires_grad_(True)
        held[layer] = tensor.view_as(tensor)
        return held[layer]

    n = model.cfg.n_layers
    hooks = [(f"blocks.{k - 1}.hook_resid_post", keep) for k in sorted({*layers, n})]
    with frozen(model):
        model.run_with_hooks(inputs, fwd_hooks=hooks, return_type=None)
        end = held[n]
        aims, weight = target.to(end.device), source.to(end.device, end.dtype)
        weight = rearrange(weight / weight.sum(1, keepdim=True), "batch pos -> batch pos 1")
        rows: dict[int, list[Tensor]] = {k: [] for k in layers}
        for i in tqdm(range(end.shape[-1]), desc="dimensions", disable=not progress):
            found = torch.autograd.grad(
                (end[..., i] * aims).sum(), [held[k] for k in layers], retain_graph=True
            )
            for k, gradient in zip(layers, found, strict=True):
                rows[k].append((gradient * weight).sum((0, 1)).float().cpu())
    return {k: torch.stack(found) for k, found in rows.items()}
