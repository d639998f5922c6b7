"""Tables of effects against loops over the native model: a pass for each row, under plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from mm_lens.causal.ablation import How, ablation_table
from mm_lens.causal.knockout import knockout, knockout_table
from mm_lens.causal.patching import generic_activation_patch
from mm_lens.check import native as plain
from mm_lens.check.attention import plain_attention
from mm_lens.check.painting import SIZES
from mm_lens.check.subject import GROUPS, TEXTS, Fault, Subject, agree
from mm_lens.model.inputs import Inputs

PATCHED = {"resid_pre": "resid_pre", "attn_out": "attn_out", "mlp_out": "mlp_out", "z": "attn.z"}
"""Activations that are patched, and their short names in the native model."""


def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
    """The number that effects are told in."""
    return logits[:, -1, 3] - logits[:, -1, 5]


def same_shape(k: int) -> Image.Image:
    """Noise; all pictures have one shape."""
    noise = torch.rand(*SIZES[0], 3, generator=torch.Generator().manual_seed(k))
    return Image.fromarray((noise * 255).byte().numpy())


def alike(subject: Subject) -> list[Inputs]:
    """Two prompts that differ in their picture alone: position by position they match."""
    return [subject.prepare(TEXTS[:1], [same_shape(k)]) for k in (0, 1)]


def options_of(subject: Subject) -> dict[str, Any]:
    """Options of tables: the first block and the last."""
    return {"stride": max(1, subject.model.cfg.n_layers - 1), "progress": False}


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def same_value(value: float, logits: Tensor, what: str) -> None:
    """A value of a table is the metric of native logits, in terms of these."""
    theirs = metric(logits)
    agree(torch.tensor([value]).to(theirs), theirs, what, logits)


@torch.no_grad()
def patching_tables(subject: Subject) -> None:
    """Patching by modality equals native hooks that put the clean run's rows there."""
    clean, corrupted = alike(subject)
    last = subject.model.cfg.n_layers - 1
    for name, short in PATCHED.items():
        found = {layer: plain.find_places(subject.model, layer) for layer in subject.layers}
        view = f"blocks.{last}.visual.{'attn.' * (name == 'z')}hook_{name}"
        places = {layer: of[short] for layer, of in found.items() if short in of}
        if view not in subject.model._hook_registry or not places:
            continue
        layers = [layer for layer in places if _has(subject, view, layer)]
        points = [view.replace("visual.", "").replace(f".{last}.", f".{k}.") for k in layers]
        _, cache = subject.model.run_with_cache(clean, names_filter=points)
        table = generic_activation_patch(
            subject.model, corrupted, cache, metric, name, axis="modality", layers=layers,
            progress=False,
        )  # fmt: skip
        for k, layer in enumerate(layers):
            donor = _states(subject, clean, places[layer])
            for group, value in zip(GROUPS, table.values[k].flatten().tolist(), strict=True):
                mask = corrupted.layout.mask(group)
                change = _replace(mask, donor)
                logits = plain.run(subject.native, corrupted, [(places[layer], change)])
                same_value(value, logits, f"patching {group} {name} at block {layer}")


def _has(subject: Subject, view: str, layer: int) -> bool:
    last = subject.model.cfg.n_layers - 1
    return view.replace(f".{last}.", f".{layer}.") in subject.model._hook_registry


def _states(subject: Subject, inputs: Inputs, place: plain.Place) -> Tensor:
    """What is at a place of the native model."""
    held: list[Tensor] = []
    plain.run(subject.native, inputs, [(place, lambda x: held.append(x.clone()))])
    return held[0]


def _replace(mask: Bool[Tensor, "batch pos"], value: Tensor | float) -> plain.Change:
    """Another value at the positions of a mask."""

    def change(x: Tensor) -> Tensor:
        shown = rearrange(mask, f"batch pos -> batch pos {'1 ' * (x.ndim - 2)}")
        return torch.where(shown, torch.as_tensor(value).to(x), x)

    return change


@torch.no_grad()
def ablation_tables(subject: Subject) -> None:
    """Zeros, means and what another sample has there equal native hooks that put the same."""
    both = alike(subject)
    hows: dict[How, Sequence[str]] = {"zero": GROUPS, "mean": GROUPS[:1], "resample": GROUPS[:1]}
    for how, groups in hows.items():
        table = ablation_table(
            subject.model, [(inputs, metric) for inputs in both], groups, how=how,
            hook="resid_post", **options_of(subject),
        )  # fmt: skip
        for row in rows_of(table):
            place = plain.find_places(subject.model, row["first_layer"])["resid_post"]
            masks = [inputs.layout.mask(row["group"]) for inputs in both]
            states = [_states(subject, inputs, place) for inputs in both] if how != "zero" else []
            given = _put(how, states, masks)
            logits = [
                plain.run(subject.native, inputs, [(place, _replace(mask, value))])
                for inputs, mask, value in zip(both, masks, given, strict=True)
            ]
            what = f"ablation ({how}) of {row['group']} at block {row['first_layer']}"
            # One value for both: the mean of two metrics.
            same_value(row["value"], torch.cat(logits).mean(0, keepdim=True), what)


def _put(how: How, states: Sequence[Tensor], masks: Sequence[Tensor]) -> Sequence[Tensor | float]:
    """What each of two samples gets in the place of a group."""
    if how == "zero":
        return [0.0, 0.0]
    if how == "resample":
        return states[::-1]
    rows = torch.cat([x[mask] for x, mask in zip(states, masks, strict=True)])
    return [rows.double().mean(0)] * 2


@torch.no_grad()
def knockouts(subject: Subject) -> None:
    """Knocked-out edges equal native attention whose mask lacks them, in tables and in one pass."""
    inputs, _ = alike(subject)
    edges = [("visual", "last"), ("visual", "text")]
    table = knockout_table(subject.model, [(inputs, metric)], edges, **options_of(subject))
    for row in rows_of(table):
        hidden = _edges(inputs, row["query"], row["key"])
        logits = _run_without(subject, inputs, {row["first_layer"]: hidden})
        same_value(
            row["value"], logits, f"knock-out of {row['edge']} at block {row['first_layer']}"
        )
    ragged = subject.ragged
    real = ragged.layout.mask("all")
    layers = sorted(_attentions(subject))
    heads = torch.zeros(subject.model.cfg.n_heads, dtype=torch.bool, device=real.device)
    heads[[0, -1]] = True
    for chosen in (None, [0, -1]):
        hidden = _edges(ragged, "text", "visual")
        if chosen is not None:
            hidden = hidden & heads[:, None, None]
        theirs = _run_without(subject, ragged, dict.fromkeys(layers, hidden))
        with knockout(
            subject.model, ragged, query="text", key="visual", layers=layers, heads=chosen
        ):
            ours = subject.model(ragged)
        agree(ours[real], theirs[real], f"logits under a knock-out of heads {chosen or 'all'}")


def _attentions(subject: Subject) -> dict[int, str]:
    """Path of the attention of each block that has one."""
    found = {}
    for layer, block in enumerate(subject.model.blocks):
        part = getattr(block, "submodules", {}).get("attn")
        if part is not None and part.original_component is not None:
            found[layer] = f"{plain.path_of(subject.model, 'blocks')}.{layer}.{part.name}"
    return found


def _edges(inputs: Inputs, query: str, key: str) -> Bool[Tensor, "batch 1 query key"]:
    layout = inputs.layout
    last = torch.zeros_like(layout.mask("all"))
    positions = torch.arange(layout.shape[1], device=last.device)
    ends = torch.where(layout.mask("all"), positions, -1).amax(1)
    last[torch.arange(len(last)), ends] = True
    queries = last if query == "last" else layout.mask(query)
    return (queries[:, :, None] & layout.mask(key)[:, None, :])[:, None]


def _run_without(subject: Subject, inputs: Inputs, hidden: Mapping[int, Tensor]) -> Tensor:
    paths = _attentions(subject)
    of = {paths[layer]: edges for layer, edges in hidden.items()}
    return _run_plainly(subject, inputs, hidden=of)


def _run_plainly(subject: Subject, inputs: Inputs, **given: Mapping[str, Any]) -> Tensor:
    """Native logits under attention that is written out.

    Raises:
        Fault: the native model calls other code.
    """
    with plain_attention(subject.native, **given) as reached:
        logits = plain.run(subject.native, inputs)
    if missed := {path for paths in given.values() for path in paths} - reached:
        raise Fault(f"{min(missed)} calls no function of transformers' registry of attention")
    return logits


@torch.no_grad()
def patterns(subject: Subject) -> None:
    """An edit of a pattern equals the native model's whose attention is written out, and edited."""
    inputs = subject.ragged
    real = inputs.layout.mask("all")
    change: Callable[..., Tensor] = lambda pattern, hook=None: 0.5 * pattern.flip(1)  # noqa: E731
    for layer, path in _attentions(subject).items():
        if layer not in subject.layers and layer != max(_attentions(subject)):
            continue
        theirs = _run_plainly(subject, inputs, edits={path: change})
        name = f"blocks.{layer}.attn.hook_pattern"
        ours = subject.model.run_with_hooks(inputs, fwd_hooks=[(name, change)])
        agree(ours[real], theirs[real], f"logits under an edit at {name}")
