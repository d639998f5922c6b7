"""What maps of other images leave of a sample: a native loop in float64, and the pooled metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import load_tiny
from made_data import make_data, plain_mixed_key
from made_tokens import normal, tokens_of

import mm_lens
from mm_lens import MMLensWarning
from mm_lens.metrics import evaluate
from mm_lens.metrics.numerics.estimates import UndefinedError
from mm_lens.profiling.per_sample.maps import fit_maps

STRENGTHS = [*10 ** np.linspace(-10, 4, 57), np.inf]


def measure(model, data, **options):
    given = {"metrics": ["anisotropy"], "tokens": 2000, "streams": ["residual"], **options}
    return mm_lens.profile(model, data, per_sample=True, progress=False, **given)


def plain_ridge(rows, strength):
    """A function that predicts: ridge about the means, its strength in mean eigenvalues."""
    x, y = (np.concatenate(side) for side in zip(*rows, strict=True))
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = x - mean_x, y - mean_y
    if np.isinf(strength):
        return lambda new: np.broadcast_to(mean_y, (len(new), len(mean_y))), mean_y
    gram = a.T @ a
    stiff = gram + strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(stiff, a.T @ b)
    return lambda new: mean_y + (new - mean_x) @ weights, mean_y


def plain_errors(pairs: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[int, float]:
    """Error of each document over its squares about the mean, by the maps of other folds."""
    ranked = sorted(pairs, key=lambda mark: plain_mixed_key(mark, 0, 0))
    groups = min(16, len(ranked))
    folds = min(4, groups)
    fold_of = {d: (i * groups // len(ranked)) * folds // groups for i, d in enumerate(ranked)}
    found = {}
    for fold in range(folds):
        scores = np.zeros(len(STRENGTHS))
        for other in {*range(folds)} - {fold}:
            rest = [pairs[d] for d in ranked if fold_of[d] not in (fold, other)]
            for k, strength in enumerate(STRENGTHS):
                predict, _ = plain_ridge(rest, strength)
                for d in ranked:
                    if fold_of[d] == other:
                        scores[k] += ((pairs[d][1] - predict(pairs[d][0])) ** 2).sum()
        rest = [pairs[d] for d in ranked if fold_of[d] != fold]
        predict, mean = plain_ridge(rest, STRENGTHS[int(scores.argmin())])
        for d in ranked:
            if fold_of[d] == fold:
                x, y = pairs[d]
                found[d] = ((y - predict(x)) ** 2).sum() / ((y - mean) ** 2).sum()
    return found


def test_each_error_is_that_of_a_native_loop_in_float64(no_float32, native):
    data = make_data(7, text_only=(4,))
    model = load_tiny(dtype=torch.float64, check=False)
    found = measure(model, data).samples
    native = native.double()
    documents = found.drop_duplicates("index").set_index("index").shared.map(lambda s: int(s, 16))
    for modality in ("visual", "text"):
        pairs = {}
        for index, sample in enumerate(data):
            inputs = model.prepare(sample.text, sample.image)
            mask = inputs.layout.mask(modality)[0]
            if mask.any():
                with torch.no_grad():
                    states = native(**inputs.native, output_hidden_states=True).hidden_states
                pairs[int(documents[index])] = tuple(states[k][0][mask].numpy() for k in (1, 2))
        expected = plain_errors(pairs)
        rows = found.query(f"layer == 2 and modality == '{modality}'")
        assert len(rows) == len(expected)
        for row in rows.itertuples():
            error = expected[int(row.shared, 16)]
            assert row.linearity_error == pytest.approx(error, rel=1e-5), (modality, row.id)
            assert 0.01 < error < 1


@pytest.fixture(scope="module")
def pair():
    """400 tokens of 20 images, three of them massive at one hook or the other."""
    x = normal(0, 400, 6) + 1
    y = x + torch.tanh(x) @ normal(1, 6, 6) + 0.2 * normal(2, 400, 6)
    x[3] *= 90
    y[7] *= 60
    y[250] *= 60
    return tokens_of(x, 20), tokens_of(y, 20)


def test_together_they_are_the_pooled_metric(pair):
    before, after = pair
    maps = fit_maps(before, after, seed=3)
    left = total = 0.0
    for image in before.sample.unique().tolist():
        mine = before.sample == image
        error = maps.error(before.x[mine], after.x[mine], image)
        fold = maps.fold_of(image)
        light = mine & (torch.arange(400) != 3) & (torch.arange(400) != 7)
        light &= torch.arange(400) != 250
        squares = float((after.x[light] - maps.outputs[fold]).square().sum())
        left, total = left + error * squares, total + squares
    pooled = evaluate(before, after, ["linearity_heldout_without_massive"], seed=3)
    value = pooled["linearity_heldout_without_massive"].value
    assert left / total == pytest.approx(1 - value, rel=1e-6)
    assert 0.05 < value < 0.95


def test_an_image_that_no_map_was_fitted_to_has_a_fold(pair):
    maps = fit_maps(*pair, seed=0)
    folds = {maps.fold_of(image) for image in range(1000, 1100)}
    assert folds == {0, 1, 2, 3}
    assert np.isnan(maps.error(torch.full((2, 6), torch.inf), torch.ones(2, 6), 5))
    assert np.isnan(maps.error(torch.zeros(0, 6), torch.zeros(0, 6), 5))


def test_too_few_tokens_give_no_map_and_it_is_said(model, pair):
    with pytest.raises(UndefinedError, match="fewer than 3 per rank"):
        fit_maps(*(each.take(torch.arange(0, 400, 25)) for each in pair), seed=0)
    data = make_data(4, text_only=())
    with pytest.warns(MMLensWarning, match="linearity_error is NaN .* fewer than 3 per rank"):
        found = measure(model, data, tokens=40).samples
    assert found[found.modality == "visual"].linearity_error.isna().all()
    with pytest.warns(MMLensWarning, match='not all states were measured: name "states"'):
        found = measure(model, data, hooks=["attn_out"]).samples
    assert found.linearity_error.isna().all()


def test_maps_in_files_are_read_again_when_they_do_not_fit(model, tmp_path, monkeypatch):
    data = make_data(5, text_only=())
    expected = measure(model, data).samples
    monkeypatch.setattr("mm_lens.profiling.per_sample.maps.HELD", 0)
    found = measure(model, data, run_dir=tmp_path / "run").samples
    assert expected.linearity_error.notna().any()
    assert found.equals(expected)
    assert len([*(tmp_path / "run" / "maps").iterdir()]) == 2 * model.cfg.n_layers
