"""Points in a plane against scikit-learn, on native states."""

from __future__ import annotations

import numpy as np
import pytest
from native_runs import native_states
from sklearn.decomposition import PCA
from tiny import random_image

from mm_lens import InputError
from mm_lens.looking import state_scatter


def test_points_are_scikit_learns(model, native):
    inputs = model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])
    table = state_scatter(model, inputs, layers=[1], most=None)
    states, _ = native_states(native, inputs.native, 1)
    x = np.concatenate([states[inputs.layout.mask(g)].double().numpy() for g in ("visual", "text")])
    pca = PCA(2).fit(x)
    want = pca.transform(x)
    got = table[["x", "y"]].to_numpy()
    signs = np.sign((want * got).sum(0))
    np.testing.assert_allclose(got, want * signs, atol=1e-3)
    assert table.attrs["explained"][1] == pytest.approx(pca.explained_variance_ratio_.sum())
    assert table["group"].value_counts()["visual"] == int(inputs.layout.mask("visual").sum())
    assert sorted(table["picture"].unique()) == [0, 1]
    few = state_scatter(model, inputs, ["visual"], layers=[1], how="tsne", most=6, unit=True)
    assert few[["x", "y"]].notna().all().all()
    assert len(few) == 12
    with pytest.raises(InputError, match="make no plane"):
        state_scatter(model, model.prepare("Eh?", random_image(12, 12)), ["last"])
