"""How far a map can be believed: deletion, insertion, and whether it points at what must matter.

*Deletion*: tokens are taken out of the stream that enters block 0, the highest value first, and the
metric is read at each step; a map that knows what matters makes it fall at once. *Insertion*: from
all taken out they are put back in the same order; it rises at once (Petsiuk et al. 2018, arXiv
1806.07421). The area is the mean of the metric along the way; `gain` is insertion less deletion, 0
for an order that knows nothing.

Two controls stand beside every map: orders at random, and nearness to the centre of the picture,
which in photographs is often a good guess and knows nothing of the model. A taken-out token is the
mean of the group's tokens in its row, or zero: both are states that the model has never seen, so
that a curve is about the model *and* that choice. Features of the image that enter between blocks
(Qwen3-VL) stay.

Where it is known what must matter, on scenes, `pointing` scores maps without running the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_whole
from mm_lens.attribution.gradients import Baseline, baseline_states
from mm_lens.attribution.result import Attribution
from mm_lens.attribution.running import evaluate_rows
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logit_metrics import LogitMetric
from mm_lens.model.running.rerun import Rerun

Maps = Mapping[str, Any]
"""By name: an `Attribution`, or values [batch, pos]; the higher, the more a token raises the
metric."""

RANDOM, CENTRE = "random order", "nearness to the centre"


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Curves of maps and controls.

    Attributes:
        curves: map, curve ("deletion" or "insertion"), row, share (of the tokens, taken out or put
            back), value of the metric.
    """

    curves: pd.DataFrame = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """For each map the mean over rows: deletion, insertion, gain, and `beats_random`, the share
        of rows in which its gain is larger than that of the orders at random."""
        by = ["map", "row", "curve"]
        # Trapezoids of equal width.
        ends = self.curves["share"].isin([0.0, 1.0])
        weight = 1 - 0.5 * ends
        area = (self.curves["value"] * weight).groupby([self.curves[x] for x in by]).sum()
        area = area / weight.groupby([self.curves[x] for x in by]).sum()
        wide = area.unstack("curve")
        wide["gain"] = wide["insertion"] - wide["deletion"]
        control = wide["gain"].xs(RANDOM, level="map")
        beats = wide["gain"] > control.reindex(wide.index.get_level_values("row")).to_numpy()
        wide["beats_random"] = beats.astype(float)
        found = wide.groupby(level="map", sort=False).mean()
        found.columns.name = None
        order = list(dict.fromkeys(self.curves["map"]))
        return found.loc[order].reset_index()


def deletion_insertion(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    maps: Maps,
    where: Any = "visual",
    *,
    steps: int = 10,
    baseline: Baseline = "mean",
    random_orders: int = 5,
    batch_size: int = 8,
    seed: int = 0,
) -> Faithfulness:
    """Take tokens out in the order of each map, and put them back.

    ```python
    maps = {"relevance": relevance(model, inputs, metric), "gradients": gradient_input(…)}
    deletion_insertion(model, inputs, answers.logit_diff, maps).table
    ```

    Cost: the vision tower once; `2 × steps × (maps + random_orders + 1)` passes of the blocks.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        metric: from logits [batch, pos, d_vocab] to one number for each row; see `mm_lens.answers`.
        maps: what is compared, by name.
        where: which tokens; every row has some, and every map values at all of them.
        steps: parts that the tokens are taken out in.
        baseline: what a token becomes; see `gradient_input`.
        random_orders: orders at random, of which the mean is the control.
        batch_size: copies of the inputs in one pass.
        seed: of the orders, and of the order of equal values.

    Raises:
        InputError: a map is of other inputs, or has no value at a token; there is no token.
        MMLensError: the check at load found that reruns of this model are wrong.
    """
    require_whole("steps", steps, 1)
    require_whole("random_orders", random_orders, 1)
    require_whole("batch_size", batch_size, 1)
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where).cpu()
    if not bool(mask.any(1).all()):
        raise InputError(f"Row {int((~mask.any(1)).nonzero()[0])} has no position of {where!r}.")
    named = {name: _values(name, x, mask) for name, x in maps.items()}
    generator = derive_generator(seed, "orders")
    trials = list(named.items())
    if bool(inputs.layout.box.isfinite().any()):
        trials.append((CENTRE, _nearness(inputs.layout.to("cpu"))))
    trials += [(RANDOM, torch.rand(mask.shape, generator=generator)) for _ in range(random_orders)]
    rerun = Rerun(model, inputs, [0])
    states = rerun.states[0]
    empty = baseline_states(baseline, states, mask.to(states.device))
    runs: list[tuple[str, str, float, Tensor]] = []
    for name, values in trials:
        place = _ranks(values, mask, generator)
        counts = mask.sum(1, keepdim=True)
        for step in range(steps + 1):
            first = place < (step / steps * counts).round()
            runs.append((name, "deletion", step / steps, first & mask))
            runs.append((name, "insertion", step / steps, ~first & mask))
    rows = []
    for start in range(0, len(runs), batch_size):
        part = runs[start : start + batch_size]
        out = torch.cat([x[3] for x in part]).to(states.device)
        hook = partial(_take_out, out=out, empty=empty.repeat(len(part), 1, 1))
        logits = rerun.run(0, len(part), [("blocks.0.hook_resid_pre", hook)])
        for (name, curve, share, _), found in zip(part, logits, strict=True):
            for row, value in enumerate(evaluate_rows(metric, found, len(mask)).tolist()):
                rows.append(
                    {"map": name, "curve": curve, "row": row, "share": share, "value": value}
                )
    table = pd.DataFrame(rows)
    names = ["map", "curve", "row", "share"]
    means = table.groupby(names, sort=False)["value"].mean()  # over orders at random
    return Faithfulness(means.reset_index())


def pointing(maps: Maps, inputs: Inputs, region: Any, where: Any = "visual") -> pd.DataFrame:
    """Whether maps point at a region that must matter; the model is not run.

    Args:
        maps: see `deletion_insertion`.
        inputs: that they are of.
        region: a `Box`, a group, a mask: where the thing is.
        where: tokens that are looked at.

    Returns:
        A row for each map and row of the batch: map, row, hit (the largest value is in the region),
        energy (share of the positive values that is), overlap (as many top tokens as the region
        has, against it: intersection over union), and chance, the region's share of the tokens. The
        nearness to the centre stands beside them.

    Raises:
        InputError: a map is of other inputs, or has no value at a token; a row has no such token.
    """
    mask = group_mask(inputs.layout, where).cpu()
    inside = group_mask(inputs.layout, region).cpu() & mask
    if not bool(inside.any(1).all()):
        raise InputError(f"Row {int((~inside.any(1)).nonzero()[0])} has no token of the region.")
    named = {name: _values(name, x, mask) for name, x in maps.items()}
    if bool(inputs.layout.box.isfinite().any()):
        named[CENTRE] = _nearness(inputs.layout.to("cpu"))
    rows = []
    for name, values in named.items():
        for row in range(len(mask)):
            here, aim = values[row][mask[row]].double(), inside[row][mask[row]]
            n, size = len(here), int(aim.sum())
            top = torch.zeros_like(aim)
            top[here.topk(size).indices] = True
            positive = here.clamp(min=0)
            rows.append(
                {
                    "map": name,
                    "row": row,
                    "hit": float(aim[here.argmax()]),
                    "energy": float(positive[aim].sum() / positive.sum().clamp(min=1e-300)),
                    "overlap": float((top & aim).sum() / (top | aim).sum()),
                    "chance": size / n,
                }
            )
    return pd.DataFrame(rows)


def _values(name: str, given: Any, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    values = given.values if isinstance(given, Attribution) else given
    if not isinstance(values, Tensor) or values.shape != mask.shape:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"The map {name!r} is {shape}, and the inputs are {tuple(mask.shape)} [batch, pos]. "
            "Take one layer of a map, of the same inputs: attention_map(…)[layer].mean(0)."
        )
    values = values.as_subclass(Tensor).detach().float().cpu()
    if not bool(values[mask].isfinite().all()):
        raise InputError(
            f"The map {name!r} has no finite value at some of the tokens. Attribute to all of "
            "them, or name those that it has in where=."
        )
    return values


def _nearness(layout: TokenLayout) -> Float[Tensor, "batch pos"]:
    """To the centre of the picture, from 0 in a corner to 1; 0 where a token has no place."""
    out = torch.zeros(layout.shape)
    for row, sizes in enumerate(layout.image_sizes):
        for k, (height, width) in enumerate(sizes):
            here = (layout.image[row] == k) & layout.box[row].isfinite().all(-1)
            x0, y0, x1, y1 = layout.box[row][here].unbind(-1)
            far = ((x0 + x1) / width - 1).square() + ((y0 + y1) / height - 1).square()
            out[row, here] = (1 - (far / 2).sqrt()).clamp(min=0)
    return out


def _ranks(
    values: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"], generator: torch.Generator
) -> Tensor:
    """Place of each token in its row's order, the highest value first; equal ones at random."""
    shuffled = torch.rand(values.shape, generator=generator).argsort(1)
    mixed = values.masked_fill(~mask, float("-inf")).gather(1, shuffled)
    order = shuffled.gather(1, mixed.argsort(dim=1, descending=True, stable=True))
    return order.argsort(1)


def _take_out(tensor: Tensor, hook: Any, out: Tensor, empty: Tensor) -> Tensor:
    return torch.where(out[..., None], empty.to(tensor), tensor)
