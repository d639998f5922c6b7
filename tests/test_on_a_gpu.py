"""What users do with a model on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from disturbed_runs import interrupt
from made_data import make_data, profile, same
from tiny import place_parts, tiny_llava_next
from tiny_families import CONFIGURATIONS, build

import mm_lens
from mm_lens.check import run_suite
from mm_lens.profiling import run, states
from mm_lens.profiling.collecting.counting import Counted

DEVICE = "cuda"
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning"),
]


@pytest.fixture(scope="module")
def model():
    return load_tiny(check=False).to(DEVICE)


@pytest.fixture(scope="module")
def data():
    return make_data(12, text_only=(4, 5))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_check_holds_there(configuration):
    """Edits, caches, patching, knock-out, generation, runs: against the native model there."""
    native, _ = build(configuration)
    wrapped, processor = build(configuration)
    model = mm_lens.load(hf_model=wrapped.to(DEVICE), processor=processor, check=False)
    table = run_suite(native.to(DEVICE), model, sample=True)
    assert table.ok, table


def test_inputs_are_prepared_where_the_model_is(model):
    """A model that is moved takes its inputs along."""
    for moved in (load_tiny(check=False).to(DEVICE), load_tiny(check=False).cuda()):
        inputs = moved.prepare(*_asked())
        assert {x.device.type for x in inputs.values() if isinstance(x, torch.Tensor)} == {DEVICE}
        assert torch.equal(moved(inputs), model(model.prepare(*_asked())))


def _asked():
    (sample,) = make_data(1)
    return [sample.text], [sample.image]


def test_a_run_is_resumed_there(model, data, tmp_path, monkeypatch):
    """Killed and resumed, in files or in memory: the same table."""
    whole = profile(model, data)
    monkeypatch.setattr(states, "COMMIT_SECONDS", 0.0)
    interrupt(model, data, tmp_path / "run", monkeypatch)
    same(profile(model, data, tmp_path / "run"), whole)


@torch.no_grad()
def test_weights_in_memory_change_nothing(tmp_path):
    """Brought to the GPU block by block: logits, states and edits are those of a whole model."""
    native, processor = tiny_llava_next()
    native.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    where = place_parts(native, 0, "cpu")
    split = mm_lens.load(str(tmp_path), device_map=where)
    whole = mm_lens.load(str(tmp_path), device=DEVICE)
    assert split.report.max_logit_difference == 0.0
    inputs = whole.prepare(*_asked())
    edit = ("blocks.1.visual.hook_resid_post", lambda rows, hook: rows * 2)
    names = mm_lens.names("resid_post", "visual")
    for one, other in zip(
        *(
            [
                model(inputs),
                model.run_with_hooks(inputs, fwd_hooks=[edit]),
                *model.run_with_cache(inputs, names_filter=names)[1].cache_dict.values(),
            ]
            for model in (split, whole)
        ),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_counted_or_not_the_states_are_the_same(model, data, monkeypatch):
    """The sample that is chosen beforehand, and the one that is found on the way."""
    counted = profile(model, data)
    monkeypatch.setattr(run, "count_tokens", lambda *_: Counted())
    same(profile(model, data), counted)


def test_profiles_there_are_those_of_the_processor(model, data):
    """Up to rounding: the same tokens, nearly the same values."""
    found = profile(model, data, metrics=None).table
    expected = profile(load_tiny(check=False).to("cpu"), data, metrics=None).table
    assert found["n_tokens"].equals(expected["n_tokens"])
    for name, of_metric in found.groupby("metric"):
        other = expected[expected["metric"] == name]
        assert of_metric["value"].to_numpy() == pytest.approx(
            other["value"].to_numpy(), rel=0.02, abs=0.02, nan_ok=True
        ), name
