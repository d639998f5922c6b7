"""Relations across models, planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from demo_training import across

HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.0.hook_attn_out"]


def plant(seed=0):
    """Both fusions, four seeds, four moments; what goes with accuracy is known."""
    chance, models, geometry = np.random.default_rng(seed), [], []
    for fusion in ("a", "b"):
        for run in range(4):
            skill = chance.normal()
            for step in (0, 10, 20, 30):
                place = {"fusion": fusion, "seed": run, "stage": "answering", "step": step}
                accuracy = 0.2 + step / 60 + 0.05 * skill + 0.002 * chance.normal()
                for kind, shift in (("colour", 0.1), ("shape", -0.1)):
                    row = {"condition": "given", "kind": kind, "accuracy": accuracy + shift}
                    models += [{**place, **row}, {**place, **row, "condition": "blanked"}]
                values = {
                    "drives": skill + 0.1 * chance.normal(),
                    "ripens": step + chance.normal(),
                    "fused": 3.0 * (fusion == "b") + 0.3 * chance.normal(),
                }
                for metric, value in values.items():
                    for layer, hook in enumerate(HOOKS):
                        where = {"stream": "residual", "modality": "visual", "layer": layer}
                        told = {"hook": hook, "metric": metric, "value": value + (layer == 2)}
                        geometry.append({**place, **where, **told})
    return pd.DataFrame(models), pd.DataFrame(geometry)


@pytest.fixture(scope="module")
def found():
    table = across.join(*plant())
    assert len(table) == 32
    return across.relate(table).set_index("metric")


def test_what_drives_is_told_from_what_ripens(found):
    assert found.loc["drives", "holds"]
    assert found.loc["drives", "equal"] > 0.8
    # It goes with training, and so with accuracy; at equal training with nothing.
    assert found.loc["ripens", "overall"] > 0.8
    assert not found.loc["ripens", "holds"]
    assert (found["looked"] == 3).all()


def test_what_the_fusion_does_is_seen_once_accuracy_is_given(found):
    assert found.loc["fused", "fusion_low"] > 1
    assert found.loc["drives", "fusion_low"] < 0 < found.loc["drives", "fusion_high"]
    assert not found.loc["fused", "holds"]


def test_at_one_moment_it_is_spearmans_correlation():
    table = across.join(*plant(1))
    one = table[table.index.get_level_values("step") == 10]
    values = one[("residual", "visual", "ripens")].to_numpy()
    accuracy = one["accuracy"].to_numpy()
    want = stats.spearmanr(values, accuracy).statistic
    assert across.equal_training(one.index, values, accuracy) == pytest.approx(want)


@pytest.mark.slow
def test_accuracies_are_dealt_within_a_fusion():
    """What drives holds as it is alone; the fusion's mark is the same in every way."""
    models, geometry = (table[table["seed"] < 3] for table in plant())
    table = across.join(models, geometry)
    ways = across.deal(table)
    assert len(ways) == 36
    assert ways[0] == across.relate(table)["holds"].sum()
    assert ways[0] == max(ways) > sorted(ways)[18]
