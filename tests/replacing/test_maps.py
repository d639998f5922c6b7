"""Maps of blocks: against scikit-learn, and put in the place of blocks against native hooks."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_questions import ask, run_replaced
from native_runs import native_states
from opened_families import make_inputs, open_family
from opened_families import run_native as run_family
from sklearn.linear_model import Ridge

from mm_lens import InputError, MMLensWarning
from mm_lens.replacing import BlockMaps, fit_maps, replacement_hooks
from mm_lens.replacing.maps import HOWS, BlockMap, turn_at_random

pytestmark = pytest.mark.filterwarnings("ignore:The maps are fitted")


@contextmanager
def made_linear(model, layer):
    """A block that is x + x W + b, for every token."""
    d = model.cfg.d_model
    chance = torch.Generator().manual_seed(1)
    weights = torch.randn(d, d, generator=chance) / d**0.5
    shift, held = torch.randn(d, generator=chance), {}

    def keep(tensor, hook):
        held["x"] = tensor.clone()

    def put(tensor, hook):
        return held["x"] + held["x"] @ weights + shift

    model.add_hook(f"blocks.{layer}.hook_resid_pre", keep, is_permanent=True)
    model.add_hook(f"blocks.{layer}.hook_resid_post", put, is_permanent=True)
    try:
        yield weights
    finally:
        model.reset_hooks(including_permanent=True)


def same_everywhere(model, inputs, hooks):
    """Largest difference that hooks make to the logits, over their standard deviation."""
    with torch.no_grad():
        plain, edited = model(inputs), model.run_with_hooks(inputs, fwd_hooks=hooks)
    there = inputs.layout.mask("all")
    return float((plain - edited)[there].abs().max() / plain[there].std())


@pytest.mark.every_family
def test_the_map_of_a_linear_block_changes_nothing(model, family, samples):
    pictures = [inputs for inputs, _ in ask(model, range(10, 40 if family == "omnifusion" else 16))]
    with made_linear(model, 1) as weights:
        maps = fit_maps(model, pictures, layers=[1])
        found = maps.blocks[1]
        assert (found.update - weights).abs().max() < 1e-4
        assert found.linearity > 1 - 1e-8
        assert found.linearity_update > 1 - 1e-8
        for inputs, _ in samples[:2]:
            assert same_everywhere(model, inputs, replacement_hooks(model, maps)) < 1e-5
            identity = replacement_hooks(model, maps, how="identity")
            assert same_everywhere(model, inputs, identity) > 1e-2


@pytest.mark.every_family
def test_the_block_itself_changes_nothing_and_others_what_native_hooks_do(
    model, native, samples, others
):
    maps = fit_maps(model, others)
    inputs = samples[0][0]
    plain = {layer: replacement_hooks(model, maps, layers=[layer], how="block") for layer in (0, 2)}
    assert all(same_everywhere(model, inputs, hooks) < 1e-5 for hooks in plain.values())
    found = maps.blocks[1]
    into, out, update = (x.float() for x in (found.into, found.out, found.update))
    edits = {
        "identity": lambda x, y: x,
        "mean": lambda x, y: out.expand_as(y),
        "shift": lambda x, y: x + (out - into),
        "affine": lambda x, y: out + (x - into) + (x - into) @ update,
    }
    for how, edit in edits.items():
        with torch.no_grad():
            hooks = replacement_hooks(model, maps, layers=[1], how=how)
            got = model.run_with_hooks(inputs, fwd_hooks=hooks)
        want = run_replaced(native, inputs, {1: edit})
        assert (got - want).abs().max() < 1e-4, how


def test_the_map_and_its_score_are_those_of_scikit_learn(model, native, others):
    found = fit_maps(model, others, "text", layers=[1]).blocks[1]
    pairs = []
    for inputs in others:
        mask = inputs.layout.mask("text")
        pairs.append([native_states(native, inputs, k)[0][mask].double().numpy() for k in (1, 2)])

    def join(which):
        return [np.concatenate([pairs[i][part] for i in which]) for part in (0, 1)]

    def strength(x, factor):
        return factor * np.square(x - x.mean(0)).sum() / min(x.shape[1], _rank(x))

    factors, missed, state, alone = 10 ** np.linspace(-10, 4, 57), np.zeros(57), 0.0, 0.0
    everyone = range(len(others))
    for fold in range(4):
        x, y = join([i for i in everyone if i % 4 != fold])
        at, wanted = join([i for i in everyone if i % 4 == fold])
        for j, factor in enumerate(factors):
            ridge = Ridge(strength(x, factor)).fit(x, y - x)
            missed[j] += np.square(wanted - at - ridge.predict(at)).sum()
        state += np.square(wanted - y.mean(0)).sum()
        alone += np.square(wanted - at - (y - x).mean(0)).sum()
    best = missed.argmin()
    x, y = join(everyone)
    assert found.n == len(x)
    assert found.linearity == pytest.approx(1 - missed[best] / state, abs=1e-4)
    assert found.linearity_update == pytest.approx(1 - missed[best] / alone, abs=1e-4)
    ridge = Ridge(strength(x, factors[best])).fit(x, y - x)
    moved = torch.from_numpy(x)
    got = found.replace("affine")(moved[None], moved[None])[0].numpy() - x
    assert np.abs(got - ridge.predict(x)).max() < 1e-4


def _rank(x):
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    return int((values > len(values) * np.finfo(float).eps * values[-1]).sum())


@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3"])
def test_other_families_too(name):
    """Features that enter between blocks; image tokens that attend to each other."""
    model, native = open_family(name)
    pictures = [make_inputs(model, rows=(True,), seed=seed) for seed in range(20, 26)]
    maps = fit_maps(model, pictures, layers=[0, 1])
    inputs = make_inputs(model, rows=(True,))
    there = inputs.layout.mask("all")
    hooks = replacement_hooks(model, maps, how="block")
    assert same_everywhere(model, inputs, hooks) < 1e-5
    with torch.no_grad():
        hooks = replacement_hooks(model, maps, layers=[0], how="identity")
        got = model.run_with_hooks(inputs, fwd_hooks=hooks)
    want = run_replaced(native, inputs, {0: lambda x, y: x}, run=run_family)
    assert (got - want)[there].abs().max() < 1e-4
    many = [make_inputs(model, rows=(True,), seed=seed) for seed in range(20, 44)]
    with made_linear(model, 1):
        maps = fit_maps(model, many, layers=[1])
        assert maps.blocks[1].n > model.cfg.d_model  # so many are needed to know the map
        assert maps.blocks[1].linearity > 1 - 1e-8
        assert same_everywhere(model, inputs, replacement_hooks(model, maps)) < 1e-5


def test_a_random_map_has_the_same_singular_values():
    matrix = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix[:, :3] = 0
    turned = turn_at_random(matrix, 5)
    values = torch.linalg.svdvals
    assert (values(turned) - values(matrix)).abs().max() < 1e-12
    assert torch.equal(turned, turn_at_random(matrix, 5))
    assert (turned - turn_at_random(matrix, 6)).abs().max() > 0.1
    assert torch.linalg.matrix_rank(turned) == 4


def test_what_cannot_be_fitted_or_put_is_refused(model, others):
    with pytest.raises(InputError, match="in 4 folds"):
        fit_maps(model, others[:3])
    with pytest.raises(InputError, match="is one of visual, text"):
        fit_maps(model, others, "base")
    with pytest.warns(MMLensWarning, match="mostly noise"):
        maps = fit_maps(model, others[:4], layers=[1])
    assert "linearity_update" in repr(maps)
    with pytest.raises(InputError, match="no map of block 2"):
        replacement_hooks(model, maps, layers=[2])


def test_maps_of_half_precision_states_stay_in_it():
    eye = torch.eye(3, dtype=torch.float64)
    maps = BlockMaps("visual", {0: BlockMap(eye[0], eye[1], eye, 9, 1.0, 1.0)}, frozenset())
    x = torch.ones(1, 2, 3, dtype=torch.bfloat16)
    for how in HOWS:
        assert maps.blocks[0].replace(how)(x, x).dtype == torch.bfloat16
    got = maps.blocks[0].replace("affine")(x, x)
    assert got.tolist() == [[[0.0, 3.0, 2.0]] * 2]  # x + (out - into) + (x - into)
