"""The projection is read without running its pickle."""

from __future__ import annotations

import pytest
import torch
from mm_lens_adapters.omnifusion.projection import NAMES, read_projection
from torch import nn
from upstream import HEADS, models_module, random_parts, write_projection

from mm_lens import MMLensError
from mm_lens.checkpoints import pickles


def test_the_projection_is_read_as_state_dict_would_have_it(tmp_path):
    parts = random_parts()
    write_projection(tmp_path / "projection.pt", parts)
    expected = {f"transformer_layer.{k}": v for k, v in parts.layer.state_dict().items()}
    expected |= {f"linear.{k}": v for k, v in parts.linear.state_dict().items()}
    found = read_projection(tmp_path / "projection.pt")
    assert set(found.tensors) == set(expected) == set(NAMES)
    assert all(torch.equal(found.tensors[name], expected[name]) for name in NAMES)
    assert (found.num_heads, found.n_tokens) == (HEADS, 25)
    assert (found.d_vision, found.d_feedforward) == (20, 28)

    torch.save(expected, tmp_path / "state.pt")
    plain = read_projection(tmp_path / "state.pt")
    assert all(torch.equal(plain.tensors[name], expected[name]) for name in NAMES)
    assert (plain.num_heads, plain.n_tokens) == (4, None)


def test_projections_of_another_structure_are_refused(tmp_path):
    path = tmp_path / "projection.pt"

    def saved(module):
        with models_module() as models:
            mapping = models.VisualToGPTMapping()
            for name, child in module.items():
                setattr(mapping, name, child)
            torch.save(mapping, path)
        return path

    linear = nn.Linear(20, 24)
    mlp = nn.Sequential(nn.Linear(20, 24), nn.GELU(), nn.Linear(24, 24))
    for other in (
        {"clip": mlp, "dino": mlp},
        {"linear": linear},
        {"transformer_layer": nn.TransformerEncoderLayer(20, 5, 28), "linear": mlp},
        {"transformer_layer": linear, "linear": linear},
        {"transformer_layer": nn.TransformerEncoderLayer(20, 5, 28), "linear": linear, "pos": mlp},
    ):
        with pytest.raises(MMLensError, match=r"two encoders.*does not fix how the features"):
            read_projection(saved(other))

    def layer(**options):
        options = {"batch_first": True, **options}
        return {"transformer_layer": nn.TransformerEncoderLayer(20, 5, 28, **options)}

    for options, message in (
        ({"norm_first": True}, "norm_first = True"),
        ({"batch_first": False}, "batch_first = False"),
        ({"activation": "gelu"}, "activation = 'gelu'"),
        ({"activation": nn.SiLU()}, "activation = 'silu'"),
        ({"layer_norm_eps": 1e-6}, "norm1.eps = 1e-06"),
    ):
        with pytest.raises(MMLensError, match=message):
            read_projection(saved({**layer(**options), "linear": linear}))
    read_projection(saved({**layer(activation=nn.ReLU()), "linear": linear}))

    torch.save({"a": 1}, path)
    with pytest.raises(MMLensError, match="does not hold a dict of tensors"):
        read_projection(path)
    torch.save([1], path)
    with pytest.raises(MMLensError, match="holds a list, not a projection"):
        read_projection(path)


def test_modules_that_are_made_up_give_one_error(tmp_path):
    def module(**state):
        groups = {"_parameters": {}, "_buffers": {}, "_modules": {}}
        new = pickles.StandIn()
        new.state = {**groups, **state}
        return new

    nested = module()
    nested.state["_modules"]["self"] = nested
    wide = module()
    for _ in range(8):
        wide = module(_modules={str(i): wide for i in range(40)})
    for made_up in (
        nested,
        wide,
        module(_parameters=None),
        module(_modules={"a": 1}),
        module(_parameters={"a": 1}),
        module(_modules={1: module()}),
    ):
        with pytest.raises(MMLensError, match=r"not a pickled torch\.nn\.Module"):
            pickles.module_tensors(made_up)
