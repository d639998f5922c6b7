"""Linear probes: what a linear map reads from a group's states, held out by image.

The probe is ridge regression onto one target for each class (+1 in it, -1 outside), in closed form;
the class of the largest answer is read. What makes a probe's accuracy mean something stands beside
it in one table:

- *held out by image*: rows that show the same picture are in one fold, and no fold is scored by a
  probe that saw one of its pictures;
- *chance*: always the class that is most frequent in the training folds;
- *control*: the same probe on labels that were dealt anew to the pictures; `selectivity` is the
  accuracy less that (Hewitt and Liang 2019, arXiv 1909.03368);
- *interval*: over pictures, never over tokens.

What a probe reads is there to be read, linearly; whether the model reads it, only an intervention
tells: steer along `Probe.direction`, or project it out (`mm_lens.steering`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from mm_lens.arguments import require_number, require_whole
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.sampling import picture_ids
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_blocks

Pool: TypeAlias = Literal["mean", "tokens"]
Labelled: TypeAlias = "Sequence[tuple[Inputs, Sequence[str]]]"
"""Inputs with a label for each row."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map from states to classes.

    Attributes:
        classes: labels.
        weights: answer of each class.
        bias: of each class.
    """

    classes: tuple[str, ...]
    weights: Float64[Tensor, "class d"] = field(repr=False)
    bias: Float64[Tensor, " class"] = field(repr=False)

    def answers(self, states: Float[Tensor, "n d"]) -> Float64[Tensor, "n class"]:
        """The answer of each class."""
        weights = self.weights.to(states.device)
        return einsum(states.double(), weights, "n d, c d -> n c") + self.bias.to(states.device)

    def direction(self, towards: str, away: str | None = None) -> Float64[Tensor, " d"]:
        """From one class to another, or to one class from the mean of the others.

        Raises:
            InputError: there is no such class.
        """
        for name in (towards, *([] if away is None else [away])):
            if name not in self.classes:
                raise InputError(f"{name!r} is not among the classes {', '.join(self.classes)}.")
        k = self.classes.index(towards)
        if away is not None:
            return self.weights[k] - self.weights[self.classes.index(away)]
        others = [i for i in range(len(self.classes)) if i != k]
        return self.weights[k] - self.weights[others].mean(0)


def fit_probe(
    states: Float[Tensor, "n d"], labels: Sequence[str], *, penalty: float = 1.0
) -> Probe:
    """Ridge regression onto +1 and -1, with an intercept that is not penalised.

    Args:
        states: one for each label.
        labels: of the states.
        penalty: of the squared weights, as scikit-learn's `alpha`.

    Raises:
        InputError: there are fewer than two classes, or not a label for each state.
    """
    require_number("penalty", penalty, 0)
    classes = tuple(sorted({*labels}))
    if len(classes) < 2 or len(labels) != len(states):
        raise InputError(
            f"A probe needs a label for each of {len(states)} states and two classes, and got "
            f"{len(labels)} labels of {len(classes)}."
        )
    index = torch.tensor([classes.index(label) for label in labels])
    x = states.detach().double().cpu()
    y = 2 * torch.nn.functional.one_hot(index, len(classes)).double() - 1
    centre, level = x.mean(0), y.mean(0)
    x, y = x - centre, y - level
    if len(x) < x.shape[1]:  # the same weights, from products of states with each other
        inner = x @ x.T + penalty * torch.eye(len(x)).double()
        weights = (x.T @ torch.linalg.solve(inner, y)).T
    else:
        inner = x.T @ x + penalty * torch.eye(x.shape[1]).double()
        weights = torch.linalg.solve(inner, x.T @ y).T
    return Probe(classes, weights, level - weights @ centre)


def probe_table(
    model: VisionLanguageBridge,
    samples: Labelled,
    where: Sequence[Any] | Mapping[str, Any] = ("visual", "text", "last"),
    *,
    layers: Sequence[int] | None = None,
    hook: str = "resid_post",
    pool: Pool = "mean",
    folds: int = 5,
    controls: int = 3,
    penalty: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out accuracy of a probe of each group at each layer, with chance and control.

    Args:
        model: the model.
        samples: inputs, and a label for each of their rows.
        where: groups whose states are probed, or a mapping from names to groups, boxes, masks.
        layers: blocks, negative ones from the end; None takes all that have the hook point.
        hook: short name of the hook point.
        pool: "mean" of a group's states in each row; or "tokens", each with its row's label, the
            accuracy of a picture being that of its tokens.
        folds: pictures are dealt to so many.
        controls: times that labels are dealt anew.
        penalty: of the probe.
        confidence: of the intervals.
        seed: of folds, controls and intervals.

    Returns:
        A row for each layer and group: layer, group, accuracy, low, high, chance, control,
        selectivity, n_images, n_classes.

    Raises:
        InputError: fewer pictures than folds; a group has no token in some row; labels do not fit.
    """
    require_whole("folds", folds, 2)
    require_whole("controls", controls, 1)
    require_number("confidence", confidence, 0, 1)
    if pool not in ("mean", "tokens"):
        raise InputError(f'pool is "mean" or "tokens", not {pool!r}.')
    groups = dict(where) if isinstance(where, Mapping) else {str(g): g for g in where}
    numbers = resolve_blocks(model, hook, layers)
    labels, pictures = _label(samples)
    order = {picture: k for k, picture in enumerate(dict.fromkeys(pictures))}
    image = torch.tensor([order[p] for p in pictures])
    n = len(order)
    if n < folds:
        raise InputError(f"{n} different pictures cannot be dealt to {folds} folds. Show more.")
    dealt = torch.randperm(n, generator=derive_generator(seed, "folds")) % folds
    rows = []
    for (layer, name), (states, row) in _read(model, samples, groups, numbers, hook, pool).items():
        own = [labels[r] for r in row.tolist()]
        fold, whose = dealt[image[row]], image[row]
        right, always = _held_out(states, own, fold, penalty)
        of_image = _by_image(right, whose, n)
        low, high = bootstrap_ci(
            of_image[None, None],
            confidence=confidence,
            generator=derive_generator(seed, "bootstrap"),
        )
        control = []
        for k in range(controls):
            moved = torch.randperm(n, generator=derive_generator(seed, f"control {k}"))
            first = {int(i): label for i, label in reversed([*zip(image, labels, strict=True)])}
            dealt_anew = [first[int(moved[i])] for i in whose]
            found, _ = _held_out(states, dealt_anew, fold, penalty)
            control.append(float(_by_image(found, whose, n).mean()))
        accuracy, of_control = float(of_image.mean()), sum(control) / len(control)
        rows.append(
            {
                "layer": layer,
                "group": name,
                "accuracy": accuracy,
                "low": float(low),
                "high": float(high),
                "chance": float(_by_image(always, whose, n).mean()),
                "control": of_control,
                "selectivity": accuracy - of_control,
                "n_images": n,
                "n_classes": len({*labels}),
            }
        )
    return pd.DataFrame(rows)


def _label(samples: Labelled) -> tuple[list[str], list[int]]:
    """Label and picture of each row."""
    labels: list[str] = []
    pictures: list[int] = []
    for inputs, given in samples:
        if isinstance(given, str) or len(given) != len(inputs.input_ids):
            raise InputError(
                f"Samples are pairs (inputs, labels) with a label for each of the "
                f"{len(inputs.input_ids)} row(s) of the inputs."
            )
        labels += [str(label) for label in given]
        pictures += picture_ids(inputs)
    return labels, pictures


def _read(
    model: VisionLanguageBridge,
    samples: Labelled,
    groups: Mapping[str, Any],
    layers: Sequence[int],
    hook: str,
    pool: Pool,
) -> dict[tuple[int, str], tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]]:
    """States of each layer and group, and the row of the samples that each is of."""
    states: dict[tuple[int, str], list[Tensor]] = {(k, g): [] for k in layers for g in groups}
    rows: dict[str, list[Tensor]] = {g: [] for g in groups}
    names = {k: str(get_act_name(hook, k)) for k in layers}
    start = 0
    for inputs, _ in samples:
        check_inputs(model, inputs)
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, names_filter=[*names.values()])
        for group, what in groups.items():
            mask = group_mask(inputs.layout, what).cpu()
            if bool((empty := ~mask.any(1)).any()):
                raise InputError(
                    f"Row {int(empty.nonzero()[0])} of a sample has no position of {what!r} to "
                    "probe."
                )
            row = mask.nonzero()[:, 0]
            for k, name in names.items():
                found = cache[name].flatten(2).float().cpu()[mask]
                if pool == "mean":
                    total = found.new_zeros(len(mask), found.shape[1]).index_add_(0, row, found)
                    found = total / mask.sum(1, keepdim=True)
                states[k, group].append(found)
            rows[group].append((torch.arange(len(mask)) if pool == "mean" else row) + start)
        start += len(inputs.input_ids)
    return {key: (torch.cat(found), torch.cat(rows[key[1]])) for key, found in states.items()}


def _held_out(
    states: Tensor, labels: Sequence[str], fold: Tensor, penalty: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Which states a probe of the other folds reads right, and which their most frequent label."""
    right, always = torch.zeros(len(states)), torch.zeros(len(states))
    for k in fold.unique().tolist():
        out = fold == k
        train = [label for label, held in zip(labels, out.tolist(), strict=True) if not held]
        test = [label for label, held in zip(labels, out.tolist(), strict=True) if held]
        most = max(sorted({*train}), key=train.count)
        always[out] = torch.tensor([float(label == most) for label in test])
        if len({*train}) < 2:
            right[out] = always[out]
            continue
        probe = fit_probe(states[~out], train, penalty=penalty)
        said = probe.answers(states[out]).argmax(1).tolist()
        pairs = zip(said, test, strict=True)
        right[out] = torch.tensor([float(probe.classes[i] == label) for i, label in pairs])
    return right, always


def _by_image(values: Tensor, whose: Tensor, n: int) -> Float[Tensor, " image"]:
    """Mean of each picture."""
    total = torch.zeros(n).index_add_(0, whose, values)
    return total / torch.zeros(n).index_add_(0, whose, torch.ones(len(values)))
