"""Activation patching by modality and by region, between images of any layouts.

The names, the order of arguments and the result are those of `transformer_lens.patching`; where it
patches a position, this patches a region (`mm_lens.regions`): the corrupted input is run with the
activations of one region, at one layer, replaced by those of the clean run, and the metric tells
how much of the answer that brings back.

```python
clean, corrupted = (model.prepare(question, image) for image in (red, blue))
answers = Answers(model, corrupted, options=COLOURS, right="red", wrong="blue")
_, clean_cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
result = get_act_patch_resid_pre(model, corrupted, clean_cache, answers.logit_diff, axis="cell")
result.effect()            # [layer, cell, batch]
result.bootstrap_ci()      # needs several rows: patch a batch, or `stack` results
```

*Clean activations* go to the positions they match (`mm_lens.layout.matching`): by segment in text,
by pixel box in images. With `resample="mean"` every position of a region gets the mean of the
clean positions of the same region and kind (text, overview, tiles, newlines) instead.

*Cost*: one forward pass of the corrupted input, then for every layer, region (and head) one of the
language model from that layer on, `batch_size` of them at a time. The vision tower is run once.

*Limits*: attention patterns have two position axes and are not patched by region;
TransformerLens's own functions do that, under `with model.bound(corrupted, clean)`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from einops import rearrange
from torch import Tensor
from transformer_lens.patching import PatchingResult
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens._storage.fingerprint import weights_digest
from mm_lens.causal.logit_metrics import LogitMetrics, evaluate_metrics, name_metrics
from mm_lens.causal.region_result import RegionPatching
from mm_lens.causal.sweep import fingerprint, probe_metrics, split_trials, sweep
from mm_lens.causal.transfer import Move, average_sources, patch, read_clean
from mm_lens.errors import HookError, InputError
from mm_lens.layout.matching import find_counterparts, match_regions
from mm_lens.layout.regions import Axis, Box, Grid, Regions, find_regions
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.cache import LayoutCache
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.streams import resolve_blocks

Resample: TypeAlias = Literal["nearest", "mean"]

PATCHABLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")
"""Hook points with one position axis, by short name."""

__all__ = [
    "Box",
    "Grid",
    "PatchingResult",
    "RegionPatching",
    "Regions",
    "find_regions",
    "generic_activation_patch",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_post",
    "get_act_patch_resid_pre",
    "stack",
]


def generic_activation_patch(
    model: VisionLanguageBridge,
    corrupted: Inputs,
    clean_cache: LayoutCache,
    patching_metric: LogitMetrics,
    activation_name: str,
    *,
    axis: Axis = "segment",
    layers: Sequence[int] | None = None,
    heads: bool = False,
    resample: Resample = "nearest",
    corrupt_hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
    batch_size: int = 8,
    save: str | PathLike[str] | None = None,
    progress: bool = True,
) -> RegionPatching:
    """Metric of the corrupted run with one region of it patched, for every layer and region.

    ```python
    _, clean_cache = model.run_with_cache(clean, names_filter=mm_lens.names("attn_out"))
    result = generic_activation_patch(
        model, corrupted, clean_cache, answers.logit_diff, "attn_out", axis="cell"
    )
    result.plot()                # on the picture
    ```

    Args:
        model: in evaluation mode.
        corrupted: what `model.prepare` returned for the corrupted run.
        clean_cache: from `model.run_with_cache` of the clean run; it holds `activation_name` at
            `layers`. As many rows as `corrupted`; its images may be of other sizes.
        patching_metric: from logits [batch, pos, d_vocab] to one number for each row [batch], or to
            a scalar; or a mapping of names to such functions. See `mm_lens.answers`.
        activation_name: one of `PATCHABLE`.
        axis: the regions; see `mm_lens.regions`.
        layers: blocks to patch, negative ones from the end; None patches all that have the hook
            point.
        heads: patch each attention head alone (z, q, k, v only).
        resample: "nearest" or "mean"; see the module.
        corrupt_hooks: forward hooks that are part of the corrupted run, such as
            `mm_lens.causal.mean_embedding_hooks`. They must treat every row alike.
        batch_size: patches in one forward pass.
        save: file that keeps what is done, to be resumed after Ctrl-C. To know whether it is
            of the same sweep costs one pass over the weights and the clean activations, and
            `mm_lens.causal.sweep.PROBES` calls of the metric.
        progress: show a progress bar on stderr.

    Returns:
        TransformerLens's result, with `plot`: `values` is [metric?, layer, region, head?, batch?],
        `baseline` the metric of the unpatched corrupted run. `index_df` has the region's name in
        the column named like the axis, and what is known of it: tile, row, col, pixel box.

    Raises:
        InputError: a region has no position in some row, or the clean input none that matches.
        HookError: the activation cannot be patched by region, is not in the cache, or a block that
            is asked for has none.
        DataError: `save` holds another sweep.
    """
    _check(model, corrupted, clean_cache, activation_name, heads)
    found = find_regions(corrupted.layout, axis)
    moves = [Move(*move) for move in match_regions(found, corrupted.layout, clean_cache.layout)]
    if resample == "mean":
        there = find_counterparts(axis, corrupted.layout, clean_cache.layout)
        moves = average_sources(moves, found, there, corrupted, clean_cache)
    elif resample != "nearest":
        raise InputError(f'resample is "nearest" or "mean", not {resample!r}.')
    blocks = resolve_blocks(model, activation_name, layers)
    clean = {
        layer: read_clean(clean_cache, get_act_name(activation_name, layer)) for layer in blocks
    }
    n_heads = clean[blocks[0]].shape[2] if heads else 1
    trials = [(la, r, h) for la in blocks for r in range(len(found)) for h in range(n_heads)]
    rerun = Rerun(model, corrupted, blocks, corrupt_hooks)
    metrics, batch = name_metrics(patching_metric), corrupted.layout.shape[0]
    baseline = evaluate_metrics(metrics, rerun.logits, batch, scalars=True)

    def run(indices: Sequence[int]) -> Tensor:
        layer = trials[indices[0]][0]
        parts = [(moves[trials[i][1]], trials[i][2] if heads else None) for i in indices]
        hook = partial(patch, parts=parts, clean=clean[layer], batch=batch)
        logits = rerun.run(layer, len(indices), [(get_act_name(activation_name, layer), hook)])
        return torch.stack(
            [evaluate_metrics(metrics, part, batch, scalars=True) for part in logits]
        )

    origin = ""
    if save is not None:
        origin = fingerprint(
            [activation_name, trials, found, [name for name, _ in corrupt_hooks]],
            [(move.row, move.target, move.source, move.groups) for move in moves],
            [baseline, rerun.logits, clean, probe_metrics(metrics, rerun.logits)],
            weights_digest(model),
        )
    values = sweep(
        split_trials(trials, [trial[0] for trial in trials], batch_size),
        run,
        origin=origin,
        save=save,
        progress=progress,
        desc=f"patching {activation_name} by {found.axis}",
    )
    axes = ["layer", found.axis, *(["head"] if heads else [])]
    head = "head" if heads else ""
    values = rearrange(
        values,
        f"(layer region {head}) metric ... -> metric layer region {head} ...",
        layer=len(blocks),
        region=len(found),
    )
    several = isinstance(patching_metric, Mapping)
    return RegionPatching(
        values=values if several else values[0],
        axis_names=axes,
        index_df=_make_index(trials, found, heads),
        metric_names=list(metrics),
        reduced=baseline.ndim == 1,
        baseline=baseline if several else baseline[0],
        has_metric_axis=several,
        regions=found,
        inputs=corrupted,
    )


def _make_sweep(activation_name: str, what: str, heads: bool = False) -> Any:
    """`generic_activation_patch` for one activation, with a docstring and arguments of its own."""

    def sweep(*arguments: Any, **options: Any) -> RegionPatching:
        run: Any = generic_activation_patch  # whose order of arguments is not this one's
        made: RegionPatching = run(
            *arguments, activation_name=activation_name, heads=heads, **options
        )
        return made

    whole = inspect.signature(generic_activation_patch)
    kept = [p for name, p in whole.parameters.items() if name not in ("activation_name", "heads")]
    vars(sweep)["__signature__"] = whole.replace(parameters=kept)
    told = inspect.getdoc(generic_activation_patch) or ""
    rest = re.sub(
        r"    (activation_name|heads): .*(\n        .*)*\n", "", told[told.find("Args:") :]
    )
    name = f"get_act_patch_{_NAMES.get(activation_name, activation_name)}"
    sweep.__name__ = sweep.__qualname__ = name
    sweep.__doc__ = f"""Patch {what} by region, for every layer and region.

```python
_, clean_cache = model.run_with_cache(clean, names_filter=mm_lens.names("{activation_name}"))
{name}(model, corrupted, clean_cache, answers.logit_diff, axis="cell").plot()
```

{rest}"""
    return sweep


_NAMES = {"z": "attn_head_out_by_pos", **{x: f"attn_head_{x}_by_pos" for x in "qkv"}}

get_act_patch_resid_pre = _make_sweep("resid_pre", "the residual stream at the start of each block")
get_act_patch_resid_mid = _make_sweep("resid_mid", "the residual stream between attention and MLP")
get_act_patch_resid_post = _make_sweep("resid_post", "the residual stream at the end of each block")
get_act_patch_attn_out = _make_sweep("attn_out", "the output of each attention layer")
get_act_patch_mlp_out = _make_sweep("mlp_out", "the output of each MLP")
get_act_patch_attn_head_out_by_pos = _make_sweep("z", "the output of each attention head", True)
get_act_patch_attn_head_q_by_pos = _make_sweep("q", "the queries of each attention head", True)
get_act_patch_attn_head_k_by_pos = _make_sweep("k", "the keys of each key-value head", True)
get_act_patch_attn_head_v_by_pos = _make_sweep("v", "the values of each key-value head", True)


def stack(results: Sequence[PatchingResult]) -> RegionPatching:
    """One result over the examples of several, for intervals over images.

    The results must be of the same sweep: layers, regions (by name), heads and metrics.

    ```python
    both = stack([get_act_patch_resid_pre(…, axis="modality") for image in images])
    low, high = both.bootstrap_ci(of_effect=True)
    ```

    Raises:
        InputError: they are not, or hold no value for each example.
    """
    if not isinstance(results, Sequence) or not all(
        isinstance(result, PatchingResult) for result in results
    ):
        raise InputError("stack takes a list of results of sweeps of this module.")
    if not results:
        raise InputError("There is no result to stack.")
    first = results[0]
    names = [name for name in first.index_df.columns if name in first.axis_names]
    for other in results:
        same = (
            other.axis_names == first.axis_names
            and other.metric_names == first.metric_names
            and other.index_df[names].equals(first.index_df[names])
        )
        if not same or other.reduced:
            raise InputError(
                "These results are of different sweeps, or their metric gave no value for each "
                "example. Stack results of the same layers, regions and metrics, whose metric "
                "returns [batch]; for images of different sizes sweep Grid(rows, cols)."
            )
    baselines = [result.baseline for result in results if result.baseline is not None]
    return RegionPatching(
        values=torch.cat([result.values for result in results], -1),
        axis_names=list(first.axis_names),
        index_df=first.index_df[names],
        metric_names=list(first.metric_names),
        reduced=False,
        baseline=torch.cat(baselines, -1) if len(baselines) == len(results) else None,
        has_metric_axis=first.has_metric_axis,
    )


def _make_index(trials: list[tuple[int, int, int]], found: Regions, heads: bool) -> pd.DataFrame:
    table: dict[str, list[Any]] = {
        "layer": [layer for layer, _, _ in trials],
        found.axis: [found.labels[region] for _, region, _ in trials],
    }
    if heads:
        table["head"] = [head for _, _, head in trials]
    for name, values in found.columns.items():
        table[name] = [values[region] for _, region, _ in trials]
    return pd.DataFrame(table)


def _check(
    model: Any, corrupted: Inputs, clean_cache: LayoutCache, activation_name: str, heads: bool
) -> None:
    if activation_name not in PATCHABLE:
        raise HookError(
            f"{activation_name!r} cannot be patched by region. Use one of: {', '.join(PATCHABLE)}; "
            "for attention patterns transformer_lens.patching under model.bound(corrupted, clean)."
        )
    if heads and activation_name not in ("z", "q", "k", "v"):
        raise HookError(f"{activation_name!r} has no heads: they are in z, q, k and v.")
    if not isinstance(corrupted, Inputs):
        raise InputError(
            "The corrupted input is what model.prepare(text, images) returns, not bare tokens: "
            "without the image there is nothing to patch by region."
        )
    if not isinstance(clean_cache, LayoutCache):
        raise InputError(
            "The clean cache is what model.run_with_cache(clean) of this model returns."
        )
    check_inputs(model, corrupted)
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    other: Any = clean_cache.model
    if other is not model and weights_digest(other) != weights_digest(model):
        raise InputError(
            "The clean cache is of another model: its activations mean something else here. Run "
            "model.run_with_cache(clean) of this model."
        )
