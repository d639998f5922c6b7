"""Probes against scikit-learn, on the native model's states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_runs import native_states
from sklearn.linear_model import RidgeClassifier
from tiny import random_image
from transformer_lens.utilities.statistics import derive_generator

from mm_lens import InputError
from mm_lens.looking.probes import fit_probe, probe_table

pytestmark = pytest.mark.every_family


@pytest.mark.parametrize("n", [7, 40])
def test_a_probe_is_scikit_learns_ridge_classifier(n):
    """Fewer states than dimensions, and more."""
    generator = torch.Generator().manual_seed(n)
    states = torch.randn(n, 12, generator=generator).double()
    labels = [("a", "b", "c")[i % 3] for i in range(n)]
    got = fit_probe(states, labels, penalty=0.3)
    want = RidgeClassifier(alpha=0.3).fit(states.numpy(), labels)
    assert np.abs(got.weights.numpy() - want.coef_).max() < 1e-9
    assert np.abs(got.bias.numpy() - want.intercept_).max() < 1e-9
    said = got.answers(states).argmax(1)
    assert [got.classes[i] for i in said] == want.predict(states.numpy()).tolist()
    assert torch.equal(got.direction("b", "a"), got.weights[1] - got.weights[0])
    assert torch.equal(got.direction("c"), got.weights[2] - got.weights[:2].mean(0))
    for call in (lambda: got.direction("d"), lambda: fit_probe(states, ["a"] * n)):
        with pytest.raises(InputError, match=r"not among the classes|two classes"):
            call()


def test_the_table_is_scikit_learns_held_out_by_picture(model, native):
    """Every picture twice: its rows are in one fold. Labels that are in the picture are read."""
    shown = [random_image(12, 12, k) if k % 2 else dark(k) for k in range(12)]
    samples = []
    for k in range(0, 12, 2):
        pictures = [shown[k], shown[k + 1]] * 2
        inputs = model.prepare(["Eh?", "Eh?", "No!", "No!"], pictures)
        samples.append((inputs, ["dark", "noise"] * 2))
    options = {"layers": [1], "hook": "resid_pre", "folds": 4, "seed": 3}
    table = probe_table(model, samples, ["visual", "last"], **options)
    assert table["group"].tolist() == ["visual", "last"]
    states, labels, image = [], [], []
    for k, (inputs, given) in enumerate(samples):
        found, _ = native_states(native, inputs, 1)
        mask = inputs.layout.mask("visual")
        states += [x[m].mean(0) for x, m in zip(found, mask, strict=True)]
        labels += given
        image += [2 * k, 2 * k + 1] * 2
    x, y = torch.stack(states).numpy(), np.array(labels)
    fold = (torch.randperm(12, generator=derive_generator(3, "folds")) % 4)[image].numpy()
    right = np.zeros(len(y))
    for k in range(4):
        fit = RidgeClassifier(alpha=1.0).fit(x[fold != k], y[fold != k])
        right[fold == k] = fit.predict(x[fold == k]) == y[fold == k]
    row = table.iloc[0]
    assert row["accuracy"] == pytest.approx(right.mean())
    assert row["accuracy"] > 0.9 > row["control"]
    assert row["selectivity"] == pytest.approx(row["accuracy"] - row["control"])
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert (row["n_images"], row["n_classes"]) == (12, 2)
    tokens = probe_table(model, samples, ["visual"], pool="tokens", **options)
    assert 0.5 < tokens["accuracy"][0] <= 1


def dark(seed):
    return random_image(12, 12, seed).point(lambda value: value // 16)


def test_refusals(model):
    inputs = model.prepare("Eh?", random_image(12, 12))
    for samples, options, complaint in (
        ([(inputs, "a")], {}, "a label for each"),
        ([(inputs, ["a", "b"])], {}, "a label for each"),
        ([(inputs, ["a"])], {}, "cannot be dealt to 5 folds"),
        ([(inputs, ["a"])] * 2, {}, "1 different pictures"),
    ):
        with pytest.raises(InputError, match=complaint):
            probe_table(model, samples, **options)
