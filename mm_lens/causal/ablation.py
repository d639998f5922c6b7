"""Zero, mean and resample ablation of groups of positions.

*Zero* puts zeros, *mean* the mean over a data set (per group; `mean_activation`), *resample* what
another input has at the matching positions (`mm_lens.layout.matching`). Zeros are far from anything
the model has seen; prefer mean or resample, and say which (Zhang and Nanda 2024, arXiv 2309.16042).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.arguments import suggest
from mm_lens.causal.effects import EffectTable, check_samples, effect_table, make_windows
from mm_lens.causal.knockout import describe_group, group_name, name_apart
from mm_lens.causal.transfer import Move, read_clean
from mm_lens.data.corruptions import assign_others
from mm_lens.errors import HookError, InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import match_regions
from mm_lens.layout.regions import find_regions, group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.cache import LayoutCache
from mm_lens.model.hooks import PARENTS, NamedHook, find_frame
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logit_metrics import LogitMetrics
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.running.rerun import Rerun
from mm_lens.model.running.writing import Place, reach
from mm_lens.model.streams import resolve_blocks

How: TypeAlias = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class Edit:
    """What the positions of a group get at one hook point; `value` None puts zeros.

    `goes_on` says in which rows what is written behind the prompt gets it too; None: in none.
    """

    row: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    value: Tensor | None
    goes_on: Bool[Tensor, " batch"] | None = None


def ablation_hooks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    group: Any,
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
    how: How = "zero",
    means: Mapping[int, Tensor] | None = None,
    donor: LayoutCache | None = None,
) -> list[NamedHook]:
    """Forward hooks that ablate a group in a forward pass of `inputs`, or of copies of them.

    ```python
    hooks = ablation_hooks(model, inputs, "visual", layers=range(4), how="zero")
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    ```

    Under `model.hooks(fwd_hooks=…)` they hold in `generate` too. Zeros and means go on in what is
    written, where the group does (`"text"`, `"all"`, `"last"`, the segment behind the image); what
    is taken from another input stays in the prompt.

    Args:
        model: the model.
        inputs: what it is run on.
        group: group of the layout, `"last"`, `Box` or mask (`mm_lens.regions`).
        layers: blocks, negative ones from the end.
        hook: short name of the hook point, as in `hooks.PARENTS`. An edit of resid_mid reaches
            the MLP, not the skip connection past it.
        how: "zero"; "mean", with `means`; "resample", with `donor`.
        means: mean of the group for each layer, from `mean_activation`.
        donor: cache of another input that holds `hook` at `layers`.

    Raises:
        InputError: the group is empty in some row, has no match in the donor, or what `how` needs
            is missing; no layer is named; or, when they run, the pass is of other inputs.
        HookError: no such hook point.
    """
    check_inputs(model, inputs)
    _check_hook(hook)
    numbers = resolve_blocks(model, hook, layers)
    edit = plan_edits(inputs.layout, group, hook=hook, how=how, means=means, donor=donor)
    return [(_name_point(hook, k), make_edit_hook([edit(k)], inputs.layout)) for k in numbers]


def plan_edits(
    layout: TokenLayout,
    group: Any,
    *,
    hook: str,
    how: How,
    means: Mapping[int, Tensor] | None = None,
    donor: LayoutCache | None = None,
) -> Callable[[int], Edit]:
    """The edit of each layer; see `ablation_hooks`."""
    _check_hook(hook)
    if how not in ("zero", "mean", "resample"):
        raise InputError(f'how is "zero", "mean" or "resample", not {how!r}.')
    if how == "resample" and not isinstance(donor, LayoutCache):
        raise InputError('how="resample" needs donor=, the cache of another input.')
    if (how != "mean" and means is not None) or (how != "resample" and donor is not None):
        raise InputError(
            f'means= is of how="mean" and donor= of how="resample": with how={how!r} it would '
            "do nothing."
        )
    found = find_regions(layout, {group_name(group): group})
    if donor is not None and how == "resample":
        source, move = donor, Move(*match_regions(found, layout, donor.layout)[0])
        return lambda k: Edit(
            move.row, move.target, move.values(read_clean(source, _name_point(hook, k)))
        )
    row, position = found.masks[0].nonzero(as_tuple=True)
    goes_on = reach(layout, group, layout.shape[1] + 1)[:, -1]

    def edit(k: int) -> Edit:
        if how == "zero":
            return Edit(row, position, None, goes_on)
        if not isinstance(means, Mapping) or k not in means:
            raise InputError('how="mean" needs means= of every layer: see mean_activation.')
        return Edit(row, position, means[k], goes_on)

    return edit


def _check_hook(hook: str) -> None:
    if hook not in PARENTS:
        known = f"Use: {', '.join(PARENTS)}.{suggest(hook, PARENTS)}"
        raise HookError(f"No hook point is called {hook!r}. {known}")


def make_edit_hook(each: Sequence[Edit], layout: TokenLayout) -> Callable[..., Tensor]:
    """A forward hook that makes edit j in the j-th copy of inputs with `layout`, and so on again.

    It refuses passes of other inputs and values of another shape than the activations have.
    """

    def run(tensor: Tensor, hook: Any) -> Tensor:
        frame = find_frame(hook)
        out = tensor.clone()
        if frame.writing or frame.decoding:
            _edit_written(out, each[0], frame.place(layout, "The edit"), layout.shape[1], hook)
            return out
        frame.require(layout, "The edit")
        for copy in range(len(tensor) // layout.shape[0]):
            edit = each[copy % len(each)]
            at = (edit.row + copy * layout.shape[0], edit.position)
            out[at] = 0 if edit.value is None else _check_shape(edit.value, tensor, hook).to(tensor)
        return out

    return run


def _edit_written(out: Tensor, edit: Edit, place: Place, length: int, hook: Any) -> None:
    """Make an edit in a pass over a part of a text that begins with a prompt of `length`."""
    rows = place.rows.to(edit.row.device)
    here = (edit.position >= place.start) & (edit.position < place.total)
    row, n = ((rows[:, None] == edit.row) & here).nonzero(as_tuple=True)
    value = None if edit.value is None else _check_shape(edit.value, out, hook).to(out)
    if value is None or value.ndim < out.ndim - 1:
        new: Any = 0 if value is None else value
        out[row, edit.position[n] - place.start] = new
        if edit.goes_on is not None:
            out[edit.goes_on[rows].nonzero().squeeze(1), max(length - place.start, 0) :] = new
    else:
        out[row, edit.position[n] - place.start] = value[n.to(value.device)]


def _check_shape(value: Tensor, tensor: Tensor, hook: Any) -> Tensor:
    one = tensor.shape[2:]
    if value.shape[-len(one) :] != one:
        raise InputError(
            f"The mean is of shape {tuple(value.shape)}, but one position of {hook.name} of "
            f"{tuple(one)}. Take it from mm_lens.causal.mean_activation of the same hook point."
        )
    return value


def mean_activation(
    model: VisionLanguageBridge,
    samples: Iterable[Inputs],
    group: Any,
    *,
    layers: Sequence[int],
    hook: str = "resid_post",
) -> dict[int, Tensor]:
    """Mean of a group's activations over all its tokens in `samples`, for each layer.

    Memory does not grow with the samples.

    ```python
    means = mean_activation(model, [inputs, …], "visual", layers=[3])      # {3: [d_model]}
    ablation_hooks(model, inputs, "visual", layers=[3], how="mean", means=means)
    ```

    Raises:
        InputError: no sample has a token of the group, or no layer is named.
    """
    _check_hook(hook)
    layers = resolve_blocks(model, hook, layers)
    if isinstance(samples, Inputs):
        samples = [samples]
    totals: dict[int, Tensor] = {}
    count = 0
    for inputs in samples:
        check_inputs(model, inputs)
        mask = group_mask(inputs.layout, group)
        names = [_name_point(hook, k) for k in layers]
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=names, **keep_logits(model, 1))
        for k, name in zip(layers, names, strict=True):
            states = cache[name]
            total = states[mask.to(states.device)].double().sum(0)
            totals[k] = totals.get(k, torch.zeros_like(total)) + total
        count += int(mask.sum())
    if not count:
        raise InputError(f"No sample has a position of the group {group!r}.")
    return {k: (total / count).float() for k, total in totals.items()}


def mean_embedding_hooks(
    inputs: Inputs, mean: Float[Tensor, " d_model"], group: Any = "visual"
) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks under which a group's embeddings are their mean, for `corrupt_hooks=` of a sweep.

    Args:
        inputs: what the model is run on.
        mean: `mean_activation(…, hook="resid_pre", layers=[0])[0]`.
        group: group of the layout, box or mask.

    Raises:
        InputError: the group is empty in some row; or, when they run, the pass is of other inputs
            or the mean is not of the model's width.
    """
    edit = plan_edits(inputs.layout, group, hook="resid_pre", how="mean", means={0: mean})(0)
    return [("blocks.0.hook_resid_pre", make_edit_hook([edit], inputs.layout))]


def ablation_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, LogitMetrics]],
    groups: Sequence[Any] | Mapping[str, Any],
    *,
    how: How = "zero",
    hook: str = "resid_post",
    window: int = 1,
    stride: int = 1,
    seed: int = 0,
    **options: Any,
) -> EffectTable:
    """Effect of ablating each group in each window of layers, over samples, as a tidy table.

    ```python
    table = ablation_table(model, [(inputs, answers.metrics), …], ["visual", "newline"], how="mean")
    table.plot("accuracy")
    ```

    Args:
        model: in evaluation mode.
        samples: inputs and their metric (or named metrics).
        groups: groups, or a mapping from names to them, which masks need.
        how: "zero"; "mean" over all samples; "resample" from another sample, drawn by `seed` so
            that none is its own donor.
        hook: short name of the hook point.
        window: layers ablated together; windows in which a block lacks the hook point are left out.
        stride: layers from the start of one window to the next.
        seed: of donors and intervals.
        options: those of `mm_lens.causal.effects.effect_table`.

    Returns:
        As `knockout_table`, with the column group in place of edge, source and target.

    Raises:
        InputError: see `ablation_hooks`; two groups have one name; or resampling from fewer than
            two samples.
    """
    named = name_apart(groups, group_name, "groups")
    _check_hook(hook)
    have = {*resolve_blocks(model, hook, None)}
    spans = [s for s in make_windows(model.cfg.n_layers, window, stride) if have.issuperset(s)]
    if not spans:
        raise HookError(
            f"No {window} blocks in a row have the hook point {hook!r}: blocks that have it are "
            f"{', '.join(map(str, sorted(have)))}. Take a smaller window."
        )
    trials = [
        {"first_layer": span[0], "last_layer": span[-1], "group": name}
        for span in spans
        for name in named
    ]
    every = sorted({k for span in spans for k in span})
    samples = check_samples(samples)
    inputs_of = [inputs for inputs, _ in samples]
    means: dict[str, Mapping[int, Tensor]] = {}
    if how == "mean":
        means = {
            name: mean_activation(model, inputs_of, group, layers=every, hook=hook)
            for name, group in named.items()
        }
    donors: list[int] = []
    if how == "resample":
        generator = torch.Generator().manual_seed(seed)
        donors = assign_others(torch.randperm(len(samples), generator=generator).tolist())

    def prepare(rerun: Rerun) -> Any:
        donor = None
        if donors:
            which = next(i for i, inputs in enumerate(inputs_of) if inputs is rerun.inputs)
            names = [_name_point(hook, k) for k in every]
            with torch.no_grad():
                of = inputs_of[donors[which]]
                _, donor = model.run_with_cache(of, names_filter=names, **keep_logits(model, 1))

        layout = rerun.inputs.layout
        edit = {
            name: plan_edits(layout, group, hook=hook, how=how, means=means.get(name), donor=donor)
            for name, group in named.items()
        }

        def run(chunk: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            """Logits of each trial, a copy for each; all of them are of one window."""
            span = range(chunk[0]["first_layer"], chunk[0]["last_layer"] + 1)
            hooks = [
                (
                    _name_point(hook, k),
                    make_edit_hook([edit[trial["group"]](k) for trial in chunk], layout),
                )
                for k in span
            ]
            return rerun.run(span[0], len(chunk), hooks)

        return run

    about = ["ablation", *map(describe_group, named.values()), how, hook, window, stride, donors]
    return effect_table(model, samples, trials, prepare, about=about, seed=seed, **options)


def _name_point(hook: str, layer: int) -> str:
    return str(get_act_name(hook, layer))
