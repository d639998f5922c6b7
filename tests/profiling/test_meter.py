"""`measuring` in loops of one's own: the numbers of `profile`, bit for bit."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from conftest import load_tiny
from made_data import make_data, quick, same
from tiny import random_image

import mm_lens
from mm_lens import InputError, MMLensWarning

KINDS = {
    "hooks": ["states", "z", "mlp_out", "tower", "projector_out"],
    "heads": True,
    "metrics": ["anisotropy", "linearity_paper", "dimension_mle"],
    "tokens": 60,
}


def loop(model, data, meter, size=3, label=True):
    for start in range(0, len(data), size):
        rows = data[start : start + size]
        if label:
            meter.label(rows)
        model(model.prepare([s.text for s in rows], [s.image for s in rows]))


def within(meter, *steps):
    """Do these things inside of the meter's `with`."""
    with meter, torch.no_grad():
        for step in steps:
            step()


def hooks_of(model):
    return [point for point in model.hook_dict.values() if point.fwd_hooks]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava-next", "omnifusion"])
def test_a_loop_of_ones_own_gives_the_bits_of_profile(family, tmp_path):
    model, data = load_tiny(family, check=False), make_data(9)
    expected = quick(model, data, **KINDS, streams=["residual"], batch_size=3)
    with mm_lens.measuring(model, **KINDS) as meter:
        loop(model, data, meter)
    assert not hooks_of(model)
    same(meter.profile, expected)
    for part in ("tokens",):
        assert meter.profile.provenance[part] == expected.provenance[part]
    for key in ("fingerprint", "n_samples"):
        assert meter.profile.provenance["data"][key] == expected.provenance["data"][key]
    meter.profile.save(tmp_path / "run")
    loaded = mm_lens.Profile.load(tmp_path / "run")
    pd.testing.assert_frame_equal(loaded.table, expected.table, check_exact=True)


@torch.no_grad()
def test_meters_of_several_processes_merge_to_that_of_one(model, tmp_path):
    data = make_data(12)
    whole, *parts = [mm_lens.measuring(model, **KINDS) for _ in range(4)]
    with whole:
        loop(model, data, whole, size=2)
    for i, meter in enumerate(parts):
        with meter:
            loop(model, data[4 * i : 4 * i + 4], meter, size=2)
    parts[2].save(tmp_path / "third")
    parts[1].merge(parts[0], tmp_path / "third")
    same(parts[1].profile, whole.profile)
    fingerprints = [m.profile.provenance["data"]["fingerprint"] for m in (parts[1], whole)]
    assert fingerprints[0] == fingerprints[1]
    with pytest.raises(InputError, match="have seen 4 of the same samples"):
        parts[1].merge(parts[0])
    other = mm_lens.measuring(model, **{**KINDS, "tokens": 50})
    with pytest.raises(InputError, match="differ in their tokens: 50 and 60"):
        whole.merge(other)


@torch.no_grad()
def test_rows_without_a_label_are_named_after_their_content(model):
    data = make_data(6, text_only=(1,))
    meters = [mm_lens.measuring(model, **KINDS) for _ in range(2)]
    with meters[0] as meter:
        loop(model, data, meter, label=False)
    again = [lambda: loop(model, data, meters[1], label=False)] * 2
    with pytest.warns(MMLensWarning, match=r"seen before.*\(6 times\)"):
        within(meters[1], *again)
    same(meters[0].profile, meters[1].profile)
    tokens = meters[0].profile.provenance["tokens"]
    assert tokens["seen"] == quick(model, data, **KINDS).provenance["tokens"]["seen"]


@torch.no_grad()
def test_what_was_generated_is_text(model):
    inputs = model.prepare(
        ["What?", "And here, then?"], [random_image(20, 30), random_image(9, 40)]
    )
    names = {"hooks": ["resid_post"], "metrics": ["anisotropy"], "tokens": 10**4}
    with mm_lens.measuring(model, **names) as meter:
        output = model.generate(
            inputs,
            max_new_tokens=4,
            do_sample=False,
            return_type="tokens",
            verbose=False,
            stop_at_eos=False,
        )
    prompt = {m: int(inputs.layout.mask(m).sum()) for m in ("visual", "text")}
    seen = meter.profile.provenance["tokens"]["seen"]
    # The last token is chosen, and not run.
    assert seen == {"visual": prompt["visual"], "text": prompt["text"] + 2 * 3}
    assert meter.profile.provenance["data"]["n_samples"] == 2

    # The same states as of one pass over what was generated.
    new = output[:, inputs.input_ids.shape[1] : -1]
    whole = dict(inputs.tensors)
    whole["input_ids"] = torch.cat([inputs.input_ids, new], 1)
    whole["attention_mask"] = torch.cat([inputs.attention_mask, torch.ones_like(new)], 1)
    with mm_lens.measuring(model, **names) as again:
        model(whole)
    pd.testing.assert_series_equal(meter.profile.table.value, again.profile.table.value, rtol=1e-4)
    assert list(meter.profile.table.n_tokens) == list(again.profile.table.n_tokens)


def test_hooks_come_off_after_an_error_and_half_a_pass_leaves_nothing(model):
    data = make_data(6, text_only=())
    meter = mm_lens.measuring(model, **KINDS)

    def fails(x, hook):
        raise ZeroDivisionError("in the middle of a pass")

    def half():
        rows = model.prepare([s.text for s in data[3:]], [s.image for s in data[3:]])
        meter.label(data[3:])
        model.run_with_hooks(rows, fwd_hooks=[("blocks.1.hook_resid_pre", fails)])

    with pytest.raises(ZeroDivisionError):
        within(meter, lambda: loop(model, data[:3], meter), half)
    assert not hooks_of(model)
    within(meter, lambda: loop(model, data[3:], meter))
    whole = mm_lens.measuring(model, **KINDS)
    within(whole, lambda: loop(model, data, whole))
    same(meter.profile, whole.profile)


def test_a_pass_in_which_a_hook_does_not_fire_is_left_out_and_said(model):
    inputs = model.prepare(["What is it?"], [random_image(20, 30)])
    meter = mm_lens.measuring(model, hooks=["resid_post"], metrics=["anisotropy"])
    with pytest.warns(MMLensWarning, match="did not fire in it"):
        within(meter, lambda: model(inputs, stop_at_layer=2))
    with pytest.raises(InputError, match=r"no whole forward pass.*blocks\.2\.hook_resid_post"):
        _ = meter.profile


def test_a_meter_that_was_taken_off_says_so(model):
    inputs = model.prepare(["What is it?"], [random_image(20, 30)])
    meter = mm_lens.measuring(model, hooks=["resid_post"], metrics=["anisotropy"])
    off = [lambda: model(inputs), lambda: model.reset_hooks(including_permanent=True)]
    with pytest.warns(MMLensWarning, match="was taken off"):
        within(meter, *off)


def test_hooks_of_the_users_own_and_resets_are_left_alone(model):
    inputs = model.prepare(["What is it?"], [random_image(20, 30)])
    point = model.hook_dict["blocks.0.hook_resid_post"]
    point.add_hook(lambda x, hook: None, is_permanent=True)
    with mm_lens.measuring(model, hooks=["resid_post"], metrics=["anisotropy"]) as meter:
        with torch.no_grad():
            model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: x)])
        model.reset_hooks()
        with torch.no_grad():
            model(model.prepare(["Another"], [random_image(20, 30)]))
    assert meter.profile.provenance["data"]["n_samples"] == 2
    assert len(point.fwd_hooks) == 1
    model.reset_hooks(including_permanent=True)


def test_a_model_whose_batches_failed_the_check_is_not_measured_in_batches(fresh):
    fresh.report.add("error", "rows of a batch differ from single ones", spoils="batch")
    meter = mm_lens.measuring(fresh, hooks=["resid_post"], metrics=["anisotropy"])
    one, two = (fresh.prepare(["What?"] * n, [random_image(20, 30)] * n) for n in (1, 2))
    within(meter, lambda: fresh(one))
    with pytest.raises(mm_lens.MMLensError, match="a meter on a batch of rows: refused"):
        within(meter, lambda: fresh(two))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model, meter: meter.label(["a"]), "1 rows were labelled"),
        (lambda model, meter: meter.__enter__(), "at work already"),
    ],
)
def test_wrong_use_is_named(model, use, message):
    inputs = model.prepare(["What is it?", "x"], [random_image(20, 30), None])
    meter = mm_lens.measuring(model, hooks=["resid_post"])
    with pytest.raises(InputError, match=message):
        within(meter, lambda: use(model, meter), lambda: model(inputs))
    assert not hooks_of(model)
    with pytest.raises(InputError, match="needs a model"):
        mm_lens.measuring("demo/llava-next")
    with pytest.raises(InputError, match="GiB"):
        mm_lens.measuring(model, tokens=10**12)
