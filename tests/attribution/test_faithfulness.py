"""Deletion, insertion and pointing: against native runs, and on maps that are known."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from attribution_cases import metric
from native_runs import native_patched, native_states
from tiny import random_image

from mm_lens import InputError
from mm_lens.attribution import deletion_insertion, pointing
from mm_lens.attribution.faithfulness import CENTRE, RANDOM
from mm_lens.layout import regions

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])


def test_curves_are_those_of_native_runs(model, native, inputs):
    mask = inputs.layout.mask("visual")
    values = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1))
    found = deletion_insertion(
        model, inputs, metric, {"mine": values}, steps=3, random_orders=2, batch_size=3
    )
    curves = found.curves.set_index(["map", "curve", "row", "share"])["value"]
    states, plain = native_states(native, inputs.native, 0)
    empty = torch.stack([x[m].mean(0).expand_as(x) for x, m in zip(states, mask, strict=True)])
    for step in range(4):
        first = torch.zeros_like(mask)
        for row in range(2):
            order = values[row].masked_fill(~mask[row], -1).argsort(descending=True)
            first[row, order[: round(step / 3 * int(mask[row].sum()))]] = True
        for curve, out in (("deletion", first), ("insertion", mask & ~first)):
            want = metric(native_patched(native, inputs.native, 0, out, empty))
            got = [curves["mine", curve, row, step / 3] for row in range(2)]
            assert got == pytest.approx(want.tolist(), abs=1e-4)
    full = metric(plain).tolist()
    for name in ("mine", RANDOM, CENTRE):
        assert [curves[name, "deletion", k, 0.0] for k in (0, 1)] == pytest.approx(full, abs=1e-4)
    table = found.table.set_index("map")
    rows = pd.Series({k: curves["mine", "deletion", 0, k / 3] for k in range(4)})
    other = pd.Series({k: curves["mine", "deletion", 1, k / 3] for k in range(4)})
    area = sum((x[0] / 2 + x[1] + x[2] + x[3] / 2) / 3 for x in (rows, other)) / 2
    assert table.loc["mine", "deletion"] == pytest.approx(area)
    assert table.loc[RANDOM, "beats_random"] == 0


def test_a_map_that_knows_beats_one_that_knows_the_contrary(model, native, inputs):
    """What each token does alone, by native runs without it."""
    mask = inputs.layout.mask("visual")
    states, plain = native_states(native, inputs.native, 0)
    empty = torch.stack([x[m].mean(0).expand_as(x) for x, m in zip(states, mask, strict=True)])
    good = torch.zeros(mask.shape)
    for position in mask.any(0).nonzero()[:, 0].tolist():
        alone = torch.zeros_like(mask)
        alone[:, position] = mask[:, position]
        without = native_patched(native, inputs.native, 0, alone, empty)
        good[:, position] = metric(plain) - metric(without)
    table = deletion_insertion(model, inputs, metric, {"good": good, "bad": -good}, steps=4).table
    table = table.set_index("map")
    assert table.loc["good", "gain"] > table.loc[RANDOM, "gain"] > table.loc["bad", "gain"]
    assert table.loc["good", "beats_random"] == 1


def test_pointing(inputs):
    box = regions.Box(0, 0, 4, 4)
    inside = regions.group_mask(inputs.layout, box) & inputs.layout.mask("visual")
    maps = {"right": inside.float(), "wrong": 1 - inside.float()}
    table = pointing(maps, inputs, box).set_index(["map", "row"])
    assert table.loc["right", ["hit", "energy", "overlap"]].to_numpy().min() == 1
    assert table.loc["wrong", ["hit", "energy", "overlap"]].to_numpy().max() == 0
    share = inside[0].sum() / inputs.layout.mask("visual")[0].sum()
    assert table.loc[(CENTRE, 0), "chance"] == pytest.approx(float(share))
    assert table.loc[(CENTRE, 0), "hit"] == 0


def test_what_is_no_map_of_these_inputs_is_refused(model, inputs):
    shape = inputs.layout.shape
    for maps, options, told in (
        ({"a": torch.zeros(1, 3)}, {}, "The map 'a' is"),
        ({"a": torch.full(shape, torch.nan)}, {}, "no finite value"),
        ({"a": torch.zeros(shape)}, {"where": "tile 9"}, "Row 0 has no position"),
    ):
        with pytest.raises(InputError, match=told):
            deletion_insertion(model, inputs, metric, maps, **options)
    with pytest.raises(InputError, match="must return a tensor of one value"):
        deletion_insertion(model, inputs, lambda x: x.sum(), {"a": torch.zeros(shape)})
    with pytest.raises(InputError, match="no token of the region"):
        pointing({"a": torch.zeros(shape)}, inputs, "tile 9")
