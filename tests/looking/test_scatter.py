"""Points in a plane against scikit-learn, on native states."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from native_runs import native_states
from sklearn.decomposition import PCA
from tiny import random_image

import mm_lens
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


def test_points_know_what_they_are_of(model):
    inputs = model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])
    layout = inputs.layout
    table = state_scatter(model, [inputs, inputs], layers=[0, 1], most=None)
    assert set(table["inputs"]) == {0, 1}
    first = table[(table["layer"] == 1) & (table["inputs"] == 0)]
    for point in first.itertuples(index=False):
        at = (point.row, point.position)
        assert (point.modality == "visual") == bool(layout.mask("visual")[at])
        if point.modality == "text":
            text = model.tokenizer.decode([int(inputs.input_ids[at])])
            assert point.word == (text if text.strip() else point.word.strip())
            assert point.word
            assert point.region == layout.segment_names[layout.segment[at]]
        else:
            assert point.image == 0
            tile = int(layout.tile[at])
            want = "newline" if layout.newline[at] else "overview" if tile == 0 else f"tile {tile}"
            assert point.region == want
            np.testing.assert_equal(
                [point.x0, point.y0, point.x1, point.y1], layout.box[at].numpy()
            )
    named = state_scatter(
        model, inputs, layers=[0], regions={"corner": mm_lens.regions.Box(0, 0, 4, 4)}, most=None
    )
    mask = mm_lens.layout.group_mask(layout, mm_lens.regions.Box(0, 0, 4, 4))
    assert (named["region"] == "corner").sum() == int(mask.sum())
    assert set(named["region"]) == {"corner", "elsewhere"}


def test_one_plane_for_all_layers_is_scikit_learns(model, native):
    inputs = model.prepare("Eh?", random_image(12, 12, 1))
    options = {"layers": [1, 2], "most": None, "together": True}
    table = state_scatter(model, inputs, ["visual"], **options)
    mask = inputs.layout.mask("visual")
    states = [native_states(native, inputs.native, k)[0][mask].double().numpy() for k in (1, 2)]
    pca = PCA(2).fit(np.concatenate(states))
    want = pca.transform(np.concatenate(states))
    got = table[["x", "y"]].to_numpy()
    np.testing.assert_allclose(got, want * np.sign((want * got).sum(0)), atol=1e-3)
    assert table.attrs["explained"][2] == pytest.approx(pca.explained_variance_ratio_.sum())


def test_umap_is_taken_where_it_is_installed(model, monkeypatch):
    inputs = model.prepare("Eh?", random_image(12, 12, 1))
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match="pip install umap-learn"):
        state_scatter(model, inputs, layers=[0], how="umap")
    asked = []

    class UMAP:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, states):
            return states[:, [3, 1]].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    table = state_scatter(model, inputs, ["visual"], layers=[0], how="umap", most=5, seed=3)
    assert asked == [{"n_neighbors": 4, "init": "pca", "random_state": 3, "n_jobs": 1}]
    states, positions = held_states(model, inputs), table["position"].to_numpy()
    np.testing.assert_allclose(table[["x", "y"]], states[positions][:, [3, 1]], rtol=1e-6)


def held_states(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter="blocks.0.hook_resid_pre")
    return cache["blocks.0.hook_resid_pre"][0].detach().numpy()
