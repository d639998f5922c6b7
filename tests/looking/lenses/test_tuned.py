"""The tuned lens: nearer to the end on other pictures, one for each group, kept in a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny import random_image

from mm_lens import DataError, InputError, MMLensWarning
from mm_lens.looking import TunedLens, fit_tuned_lens, lens_curves, visual_logit_lens
from mm_lens.looking.lenses.tuned import FORMAT

pytestmark = pytest.mark.every_family
OPTIONS = {"layers": [1], "steps": 30, "batch_size": 64, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def samples(model):
    return [
        model.prepare(["Eh?"] * 4, [random_image(12, 12, 4 * k + i) for i in range(4)])
        for k in range(3)
    ]


@pytest.fixture(scope="module")
def lens(model, samples):
    return fit_tuned_lens(model, samples, "visual", **OPTIONS)


def test_it_is_nearer_to_the_end_on_pictures_that_it_did_not_see(model, lens, tmp_path):
    (row,) = lens.table.to_dict("records")
    assert row["n_pictures"] == 3
    assert row["gain"] == pytest.approx(row["kl_logit"] - row["kl"])
    assert row["gain"] > row["low"] > 0
    new = model.prepare(["Eh?"] * 2, [random_image(12, 12, k) for k in (50, 51)])
    curves = [
        lens_curves(model, new, ["visual"], layers=[1], lens=x).set_index("quantity")["value"]["kl"]
        for x in (lens, None)
    ]
    assert curves[0] < curves[1]
    lens.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    assert (again.layers, again.where) == ((1,), "visual")
    assert again.table.equals(lens.table)
    read = [visual_logit_lens(model, new, lens=x) for x in (lens, again)]
    assert read[0].layers == (1, 3)
    assert torch.equal(read[0].top_ids, read[1].top_ids)


def test_a_lens_of_nothing_is_the_logit_lens(model, samples, lens):
    """A rate of zero leaves it where it began, and it says so."""
    with pytest.warns(MMLensWarning, match="no nearer to the end"):
        none = fit_tuned_lens(model, samples, "text", layers=[2], steps=1, learning_rate=0.0)
    assert none.table["gain"].tolist() == [0.0]
    read = [visual_logit_lens(model, samples[0], layers=[2], lens=x) for x in (none, None)]
    assert torch.equal(read[0].top_ids, read[1].top_ids)
    with pytest.raises(InputError, match="has no state 2"):
        lens.translate(torch.zeros(1, lens.d_model), 2)
    with pytest.raises(InputError, match="no state 2: it was fitted"):
        visual_logit_lens(model, samples[0], layers=[2], lens=lens)


def test_what_cannot_be_fitted_or_read_is_refused(model, samples, tmp_path):
    one = model.prepare("Eh?", random_image(12, 12))
    for options, told in (({"layers": [-1]}, "last state"), ({"held_out": 2}, "held_out")):
        with pytest.raises(InputError, match=told):
            fit_tuned_lens(model, samples, **options)
    with pytest.raises(InputError, match="two pictures"):
        fit_tuned_lens(model, one)
    with pytest.raises(DataError, match="cannot be read"):
        TunedLens.load(tmp_path / "none")
    for told in ({"table": "["}, {"table": "[]", "layers": "[0]"}, {}):
        save_file({"weights": torch.zeros(1)}, tmp_path / "bad", {"format": FORMAT, **told})
        with pytest.raises(DataError, match="cannot be read as a tuned lens"):
            TunedLens.load(tmp_path / "bad")
    save_file({"weights": torch.zeros(1)}, tmp_path / "bad", {"format": "other"})
    with pytest.raises(DataError, match="is no tuned lens"):
        TunedLens.load(tmp_path / "bad")
