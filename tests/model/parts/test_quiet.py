"""Where nothing listens nothing is called, and every number stays."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from accelerate import cpu_offload
from conftest import load_tiny
from tiny import random_image
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    LinearBridge,
    NormalizationBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from mm_lens.model.parts.quiet import QuietHookPoint, QuietPart, restore

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def loud(model):
    """The same model as TransformerLens runs it."""
    loud = copy.deepcopy(model)
    restore(loud)
    return loud


@pytest.fixture(scope="module")
def count_calls():
    """Count how often torch enters the forward of parts of these kinds while `run` runs."""

    def count(monkeypatch, run):
        calls = Counter()
        for kind in (HookPoint, LinearBridge, NormalizationBridge, BlockBridge):

            def counted(self, *args, kind=kind, forward=kind.forward, **kwargs):
                calls[kind] += 1
                return forward(self, *args, **kwargs)

            monkeypatch.setattr(kind, "forward", counted)
        run()
        return calls

    return count


def test_restored_parts_are_those_of_transformer_lens(loud, model):
    assert not any(isinstance(part, QuietPart) for part in loud.modules())
    assert QuietHookPoint not in map(type, loud.modules())
    parts = [part for part in model.modules() if isinstance(part, GeneralizedComponent)]
    assert all(isinstance(part, QuietPart) for part in parts)


@torch.no_grad()
def test_no_hook_point_is_called_and_no_norm_computed_twice(
    model, loud, one, monkeypatch, count_calls
):
    assert count_calls(monkeypatch, lambda: model(one))[HookPoint] == 0
    monkeypatch.undo()
    assert count_calls(monkeypatch, lambda: loud(one))[HookPoint] > 50
    monkeypatch.undo()
    assert count_calls(monkeypatch, lambda: model(one))[BlockBridge] == 0
    monkeypatch.undo()
    means = Counter()
    original = torch.Tensor.mean

    def mean(self, *args, **kwargs):
        means["n"] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "mean", mean)
    model(one)
    n_rms = sum(type(part).__name__.endswith("MistralRMSNorm") for part in model.modules())
    assert means["n"] == n_rms > 0


def test_logits_and_gradients_are_the_same(model, loud, one):
    found = []
    for bridge in (model, loud):
        bridge.zero_grad()
        logits = bridge(one)
        logits[0, -1, :7].sum().backward()
        weight = bridge.blocks[0].attn.q.weight
        found.append((logits.detach(), weight.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@torch.no_grad()
def test_every_activation_is_the_same(model, loud, one):
    (_, cache), (_, expected) = model.run_with_cache(one), loud.run_with_cache(one)
    assert cache.keys() == expected.keys()
    assert all(torch.equal(cache[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.q.hook_in",
        "blocks.1.attn.v.hook_out",
        "blocks.0.mlp.out.hook_in",
        "blocks.1.ln1.hook_scale",
        "blocks.0.ln2.hook_normalized",
        "ln_final.hook_out",
        "blocks.0.ln1.hook_in",
        "blocks.1.hook_in",
        "blocks.0.hook_resid_post",
        "blocks.0.attn.hook_in",
        "blocks.1.attn.hook_out",
        "blocks.0.mlp.hook_in",
        "blocks.1.mlp.hook_out",
        "vision_projector.hook_out",
        "unembed.hook_in",
    ],
)
@pytest.mark.filterwarnings("ignore:A forward hook edited")
@torch.no_grad()
def test_every_edit_has_its_effect(model, loud, one, name):
    def edit(x, hook):
        return x * 1.5

    plain = loud(one)
    found, expected = (m.run_with_hooks(one, fwd_hooks=[(name, edit)]) for m in (model, loud))
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)


@torch.no_grad()
def test_what_enters_the_mlp_is_edited_while_that_is_asked_for(model, loud, one):
    """Norms hand it over then, and then alone."""
    edit = ("blocks.1.hook_mlp_in", lambda x, hook: x * 1.5)
    plain, found = loud(one), []
    for bridge in (model, loud):
        bridge.set_use_hook_mlp_in(True)
        found.append(bridge.run_with_hooks(one, fwd_hooks=[edit]))
        bridge.set_use_hook_mlp_in(False)
    assert torch.equal(*found)
    assert not torch.equal(found[0], plain)
    assert torch.equal(model(one), plain)
    assert not model.blocks[1].ln2._forward_pre_hooks


@torch.no_grad()
def test_a_block_stops_and_starts_where_it_should(model, loud, one):
    states = [bridge(one, stop_at_layer=1) for bridge in (model, loud)]
    assert torch.equal(*states)
    with model.bound(one):
        found = model(states[0], start_at_layer=1)
    assert torch.equal(found, loud(one))


def test_a_backward_hook_is_called(model, one):
    grads = []
    with model.hooks(bwd_hooks=[("blocks.0.attn.q.hook_out", lambda g, hook: grads.append(g))]):
        model(one)[0, -1, 0].backward()
    (grad,) = grads
    assert bool(grad.any())


@torch.no_grad()
def test_a_hook_of_torch_on_a_part_is_called(model, one):
    seen = []
    part = model.blocks[0].attn.q
    handle = part.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(one)
    handle.remove()
    assert len(seen) == 1


@torch.no_grad()
def test_offloaded_weights_are_brought_back(family, one):
    model = load_tiny(family, check=False)
    expected = model(one)
    for name, part in list(model.original_model.named_modules()):
        if isinstance(part, torch.nn.Linear) and "language_model" in name:
            cpu_offload(part)
    assert model.blocks[0].attn.q.original_component.weight.device.type == "meta"
    assert torch.equal(model(one), expected)


@torch.no_grad()
def test_a_copy_of_the_model_has_its_own_hook_points(model, one):
    other = copy.deepcopy(model)
    names = set(model.hook_dict)
    assert set(other.hook_dict) == names
    assert not set(map(id, other.hook_dict.values())) & set(map(id, model.hook_dict.values()))
    taken = model.hook_dict
    taken.clear()
    assert set(model.hook_dict) == names


@torch.no_grad()
def test_hook_points_that_come_later_are_found(fresh):
    point = HookPoint()
    before = len(fresh.hook_dict)
    fresh._hook_registry["blocks.0.hook_new"] = point
    assert fresh.hook_dict["blocks.0.hook_new"] is point
    other = HookPoint()
    fresh._hook_registry["blocks.0.hook_new"] = other
    assert fresh.hook_dict["blocks.0.hook_new"] is other
    del fresh._hook_registry["blocks.0.hook_new"]
    assert len(fresh.hook_dict) == before


@torch.no_grad()
def test_uninstalled_it_is_transformer_lens_again(family):
    model = load_tiny(family, check=False)
    inputs = model.prepare("What is it?", random_image(31, 57))
    expected = model(inputs)
    plain = model.uninstall()
    assert not any(isinstance(part, QuietPart) for part in plain.modules())
    tokens = inputs.input_ids
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    assert torch.equal(plain(tokens, **rest), expected)
