"""Features on pictures and by modality, against native states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_runs import native_states
from sklearn.metrics import r2_score
from tiny import random_image

from mm_lens import InputError
from mm_lens.dictionaries import feature_table, feature_values, load_coder

pytestmark = pytest.mark.every_family
FILES = Path(__file__).parents[1] / "outside" / "sae"


def test_features_of_tokens(model, native):
    inputs = model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])
    coder = load_coder(FILES / "gated")
    states, _ = native_states(native, inputs.native, 2)
    found = coder.encode(states)
    values = feature_values(model, inputs, coder, [3, 7], layer=1)
    mask = inputs.layout.mask("visual")
    torch.testing.assert_close(values[1, mask], found[mask][:, 7], atol=1e-4, rtol=1e-4)
    assert values[:, ~mask].isnan().all()
    assert values.plot([0]) is not None
    table = feature_table(model, inputs, coder, layer=1)
    for group in ("visual", "text"):
        mine = found[inputs.layout.mask(group)]
        rows = table[table["group"] == group].set_index("feature")
        for feature in (3, 7):
            fired = mine[:, feature] > 0
            assert rows.loc[feature, "share"] == pytest.approx(float(fired.float().mean()))
            assert rows.loc[feature, "top"] == pytest.approx(
                float(mine[:, feature].max()), rel=1e-3
            )
            mean = float(mine[fired, feature].mean())
            assert rows.loc[feature, "mean"] == pytest.approx(mean, rel=1e-3, nan_ok=True)
        x = states[inputs.layout.mask(group)]
        want = r2_score(x, coder.decode(mine, x), multioutput="variance_weighted")
        assert table.attrs["explained"][group] == pytest.approx(want, rel=1e-3)
        assert table.attrs["active"][group] == pytest.approx(
            float((mine > 0).sum(1).float().mean())
        )
    for call, told in (
        (lambda: feature_values(model, inputs, coder, [99], layer=1), "no feature 99"),
        (lambda: feature_values(model, inputs, coder, [0], "tile 9", layer=1), "no position of"),
        (lambda: feature_table(model, inputs, coder, ["tile 9"], layer=1), "no position of"),
    ):
        with pytest.raises(InputError, match=told):
            call()
