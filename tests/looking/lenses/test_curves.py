"""Curves over depth: what they are of, and their intervals. Numbers: tests/outside."""

from __future__ import annotations

import pytest
from tiny import random_image

from mm_lens import InputError
from mm_lens.looking import lens_curves

pytestmark = pytest.mark.every_family


def test_the_end_is_reached_and_intervals_are_over_pictures(model):
    shown = [random_image(12, 12, k) for k in (1, 2, 2)]
    inputs = model.prepare(["Eh?", "No!", "So?"], shown)
    table = lens_curves(model, inputs, ["visual", "last"], layers=[1, -1], most=4)
    assert set(table["group"]) == {"visual", "last"}
    assert (table["n_pictures"] == 2).all()
    assert set(table[table["group"] == "visual"]["n_tokens"]) == {12}
    end = table[table["layer"] == 3].set_index(["group", "quantity"])["value"]
    assert end["visual", "kl"] == end["visual", "rank"] == 0
    assert end["last", "top"] == 1
    kl = table[(table["layer"] == 1) & (table["quantity"] == "kl")]
    assert (kl["low"] <= kl["value"]).all()
    assert (kl["value"] <= kl["high"]).all()
    one = lens_curves(model, model.prepare("Eh?", shown[0]), ["visual"], layers=[1])
    assert one["low"].isna().all()


def test_what_cannot_be_read_is_refused(model, batch):
    for call, told in (
        (lambda: lens_curves(model, batch, []), "names no group"),
        (lambda: lens_curves(model, batch, ["tile 9"]), "hold no position"),
        (lambda: lens_curves(model, batch, lens="no"), "lens is what"),
        (lambda: lens_curves(model, [], ["visual"]), "hold no position"),
    ):
        with pytest.raises(InputError, match=told):
            call()
