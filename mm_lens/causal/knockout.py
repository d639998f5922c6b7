"""Attention knock-out: queries of one group no longer see the keys of another.

What was attended there becomes exactly 0 and the rest is renormalised, since the scores are masked
before the softmax, as a native model's attention mask does (Geva et al. 2023, arXiv 2304.14767,
section 4). Works under sdpa and eager attention alike, for any window of layers and heads.

`source` are the keys, where information comes from; `target` the queries, where it goes: that
the question no longer looks at the image is `source="visual", target="question"`. Groups are
those of the layout, `"last"`, a `Box` or a mask (`mm_lens.regions`).

A query whose keys would all be knocked out has nothing to renormalise: that is an error, not a row
of zeros. `keep_self` leaves each query the key of its own position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mm_lens.causal.effects import EffectTable, effect_table, make_windows
from mm_lens.causal.logit_metrics import LogitMetrics
from mm_lens.causal.rerun import Rerun
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import resolve_layers


@contextmanager
def knockout(
    model: VisionLanguageBridge,
    inputs: Inputs,
    *,
    source: Any,
    target: Any,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    keep_self: bool = False,
) -> Iterator[None]:
    """Knock out attention of `target` to `source` in every forward pass of `inputs` inside.

    ```python
    with knockout(model, inputs, source="visual", target="last", layers=range(4, 8)):
        logits = model(inputs)
    ```

    Args:
        model: the model.
        inputs: what it is run on inside.
        source: group of the keys.
        target: group of the queries.
        layers: blocks, negative ones from the end; None takes all.
        heads: heads; None takes all.
        keep_self: leave each query the key of its own position.

    Raises:
        InputError: there is nothing to knock out (no target comes after a source in some row), or
            a query would be left without keys; no layer or no head is named; other inputs are run
            inside (copies of these will do).
    """
    keys = _per_head(model, find_blocked_keys(inputs.layout, source, target, keep_self), heads)
    blocked = dict.fromkeys(resolve_layers(layers, model.cfg.n_layers), keys)
    with mask_keys(model, blocked, inputs.layout):
        yield


def find_blocked_keys(
    layout: TokenLayout, source: Any, target: Any, keep_self: bool = False
) -> Bool[Tensor, "batch query key"]:
    """Which keys are knocked out for which queries.

    Raises:
        InputError: see `knockout`.
    """
    keys, queries = group_mask(layout, source), group_mask(layout, target)
    n = layout.shape[1]
    attended = layout.mask("all")
    seen = torch.ones(n, n, dtype=torch.bool, device=layout.device).tril() & attended[:, None, :]
    blocked = queries[:, :, None] & keys[:, None, :] & seen
    if keep_self:
        blocked = blocked & ~torch.eye(n, dtype=torch.bool, device=layout.device)
    if not bool(blocked.flatten(1).any(1).all()):
        row = int((~blocked.flatten(1).any(1)).nonzero()[0])
        raise InputError(
            f"There is nothing to knock out in row {row}: no position of the target {target!r} "
            f"comes after one of the source {source!r}. A model attends backwards only."
        )
    alone = ((seen & ~blocked).sum(-1) == 0) & attended
    if bool(alone.any()):
        row, position = alone.nonzero()[0].tolist()
        raise InputError(
            f"Position {position} of row {row} would be left without any key to attend to, so "
            "nothing could be renormalised. Leave it out of the target, keep a key of the source, "
            "or pass keep_self=True."
        )
    return blocked


def knockout_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, LogitMetrics]],
    edges: Sequence[tuple[Any, Any]] | Mapping[str, tuple[Any, Any]],
    *,
    window: int = 1,
    stride: int = 1,
    heads: Sequence[int] | None = None,
    keep_self: bool = False,
    **options: Any,
) -> EffectTable:
    """Effect of knocking out each edge in each window of layers, over samples, as a tidy table.

    Args:
        model: in evaluation mode.
        samples: inputs and their metric (or named metrics), see `mm_lens.answers`.
        edges: (source, target) pairs, or a mapping from names to them, which masks need.
        window: layers knocked out together; `stride`: from the start of one window to the next.
        stride: see `window`.
        heads: heads knocked out together; None takes all.
        keep_self: leave each query the key of its own position.
        options: `batch_size`, `save`, `progress`, `confidence`, `n_resamples` and `seed` of
            `mm_lens.causal.effects.effect_table`.

    Returns:
        One row for each window, edge and metric: first_layer, last_layer, edge, source, target,
        metric, baseline, value, effect, low, high, p_value, n. `effect` is value - baseline, its
        interval a bootstrap over samples, its p-value a sign-flip permutation test.

    Raises:
        InputError: see `knockout`; or two edges have one name.
        DataError: `save` holds another table.
    """
    named = name_apart(edges, lambda edge: " → ".join(map(group_name, edge)), "edges")
    spans = make_windows(model.cfg.n_layers, window, stride)
    trials = [
        {
            "first_layer": span[0],
            "last_layer": span[-1],
            "edge": name,
            "source": group_name(source),
            "target": group_name(target),
        }
        for span in spans
        for name, (source, target) in named.items()
    ]

    def prepare(rerun: Rerun) -> Any:
        layout = rerun.inputs.layout
        blocked = {
            name: _per_head(model, find_blocked_keys(layout, source, target, keep_self), heads)
            for name, (source, target) in named.items()
        }
        return partial(_run, model, rerun, blocked)

    groups = [describe_group(group) for edge in named.values() for group in edge]
    about = ["knockout", *groups, window, stride, heads, keep_self]
    return effect_table(model, samples, trials, prepare, about=about, **options)


def _run(
    model: VisionLanguageBridge,
    rerun: Rerun,
    blocked: Mapping[str, Tensor],
    trials: Sequence[Mapping[str, Any]],
) -> tuple[Tensor, ...]:
    """Logits of each trial; all of them are of one window."""
    span = range(trials[0]["first_layer"], trials[0]["last_layer"] + 1)
    together = torch.cat([blocked[trial["edge"]] for trial in trials])
    with mask_keys(model, dict.fromkeys(span, together), rerun.inputs.layout):
        return rerun.run(span[0], len(trials))


@contextmanager
def mask_keys(
    model: VisionLanguageBridge,
    blocked: Mapping[int, Bool[Tensor, "batch head query key"]],
    layout: TokenLayout,
) -> Iterator[None]:
    """Mask keys in some blocks, in passes of inputs with `layout` or of copies of them.

    The head axis may have size 1, for all heads.
    """

    def mask(
        module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keys: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        copies, rest = divmod(hidden.shape[0], keys.shape[0])
        if rest or not copies or keys.shape[2] != hidden.shape[1]:
            raise InputError(
                f"A forward pass of shape {tuple(hidden.shape[:2])} [batch, pos] ran under a "
                f"knock-out made for {keys.shape[0], keys.shape[2]}. Run the inputs that it was "
                "made for, without generating."
            )
        model.context.frame.require(layout, "The knock-out")
        keys = keys.to(hidden.device).repeat(copies, 1, 1, 1)
        given = kwargs.get("attention_mask")
        n = hidden.shape[1]
        if given is None:  # causal, and nothing is padding
            given = torch.ones(n, n, dtype=torch.bool, device=hidden.device).tril()[None, None]
        if given.dtype == torch.bool:
            edited = given & ~keys
        else:
            edited = given.expand(*keys.shape[:2], n, n)
            edited = edited.masked_fill(keys, torch.finfo(given.dtype).min)
        return args, {**kwargs, "attention_mask": edited}

    with ExitStack() as stack:
        for layer, keys in blocked.items():
            hook = partial(mask, keys=keys)
            handle = model.blocks[layer].attn.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _per_head(
    model: VisionLanguageBridge, blocked: Tensor, heads: Sequence[int] | None
) -> Bool[Tensor, "batch head query key"]:
    if heads is None:
        return blocked[:, None]
    n = model.cfg.n_heads
    if not len(heads):
        raise InputError("heads= names no head. Leave it out to take all.")
    if wrong := [h for h in heads if not -n <= h < n]:
        raise InputError(f"There is no head {wrong[0]}: the model has {n}.")
    chosen = torch.zeros(n, dtype=torch.bool, device=blocked.device)
    chosen[list(heads)] = True
    return blocked[:, None] & chosen[:, None, None]


def name_apart(
    items: Sequence[Any] | Mapping[str, Any], name: Callable[[Any], str], what: str
) -> Mapping[str, Any]:
    """What a table is made of, by names that are its rows.

    Raises:
        InputError: two have one name, and their rows would fall together.
    """
    if isinstance(items, Mapping):
        return items
    found: dict[str, Any] = {}
    for item in items:
        if (called := name(item)) in found:
            raise InputError(
                f"Two {what} are called {called!r}, and would be one row of the table. Pass a "
                f"mapping from names to {what}."
            )
        found[called] = item
    return found


def group_name(group: Any) -> str:
    """Name of a group in tables: a mask has none of its own."""
    return "mask" if hasattr(group, "dtype") else str(group)


def describe_group(group: Any) -> Any:
    """A group as the fingerprint of a table takes it: masks by all their bits."""
    return torch.as_tensor(group) if hasattr(group, "dtype") else group
