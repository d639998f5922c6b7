"""Patching by region against a plain loop over the native model, with hooks on its modules."""

from __future__ import annotations

import pytest
import torch
from causal_cases import BATCH, OTHER
from conftest import load_tiny
from native_runs import layers_of, metric, native_patched, native_states, run_native
from tiny import random_image

import mm_lens
from mm_lens import HookError, InputError
from mm_lens.causal import patching
from mm_lens.causal.patching import Box, Grid

pytestmark = [pytest.mark.every_family, pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")]


@pytest.mark.parametrize("side", ["left", "right"])
def test_patching_equals_a_native_loop(model, native, side):
    """Padded rows, two images, every region and layer: equal to 1e-5 at logits of size 10."""
    corrupted, clean = (model.prepare(*x, padding_side=side) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    last = corrupted.attention_mask.sum(1) - 1 if side == "right" else None

    def at_last(logits):
        here = logits[:, -1] if last is None else logits[torch.arange(2), last]
        return here[:, 3] - here[:, 5]

    axis = {"visual": "visual", "text": "text", "last": "last", "box": Box(20, 8, 40, 20)}
    result = patching.get_act_patch_resid_pre(
        model, corrupted, cache, at_last, axis=axis, batch_size=3, progress=False
    )
    assert result.values.shape == (3, 4, 2)
    assert result.axis_names == ["layer", "region"]
    assert torch.allclose(result.baseline, at_last(run_native(native, corrupted)), atol=1e-5)
    masks = patching.find_regions(corrupted.layout, axis).masks
    for layer in range(3):
        states, _ = native_states(native, clean, layer)
        for k in range(4):
            want = at_last(native_patched(native, corrupted, layer, masks[k], states))
            assert (result.values[layer, k] - want).abs().max() < 1e-5


def test_patching_everything_gives_the_clean_answer(model):
    """Also between images of other layouts, where every position is replaced by its match."""
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    logits, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    result = patching.get_act_patch_resid_pre(
        model, corrupted, cache, metric, axis={"all": "all"}, progress=False
    )
    assert torch.allclose(result.values[:, 0], metric(logits).expand(3, 2), atol=1e-5)
    assert result.effect().abs().max() > 0.01


@pytest.mark.parametrize("name", ["attn_out", "mlp_out", "resid_post", "resid_mid"])
def test_other_activations_equal_a_native_loop(model, native, name):
    corrupted, clean = (model.prepare("Eh?", random_image(31, 57, s)) for s in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(name))
    sweep = getattr(patching, f"get_act_patch_{name}")
    result = sweep(model, corrupted, cache, metric, axis="modality", layers=[1], progress=False)
    block = layers_of(native)[1]
    module = {"attn_out": block.self_attn, "mlp_out": block.mlp, "resid_post": block}.get(
        name, block.self_attn
    )
    held, entering = [], []  # resid_mid is what enters the block and the attention's output
    watch = block.register_forward_pre_hook(
        lambda m, args, kwargs: entering.append((args or tuple(kwargs.values()))[0]),
        with_kwargs=True,
    )

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(lambda m, a, o: held.append(first(o)))
    run_native(native, clean)
    handle.remove()
    for k, group in enumerate(("visual", "text")):
        mask = corrupted.layout.mask(group)[..., None]

        def edit(m, a, output, mask=mask):
            value = held[0]
            if name == "resid_mid":
                value = value + entering[0] - entering[-1]
            new = torch.where(mask, value, first(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = module.register_forward_hook(edit)
        want = metric(run_native(native, corrupted))
        handle.remove()
        assert (result.values[0, k] - want).abs().max() < 1e-5
    watch.remove()
    assert result.effect().abs().max() > 1e-3


def test_heads_equal_a_native_loop(model, native):
    """A head's output enters the native output projection as its slice of columns."""
    corrupted, clean = (model.prepare("Eh?", random_image(31, 57, s)) for s in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("z"))
    result = patching.get_act_patch_attn_head_out_by_pos(
        model, corrupted, cache, metric, axis=["visual"], layers=[-1], progress=False
    )
    assert result.values.shape == (1, 1, 4, 1)
    assert result.axis_names == ["layer", "region", "head"]
    project, held = layers_of(native)[-1].self_attn.o_proj, []
    handle = project.register_forward_pre_hook(lambda m, args: held.append(args[0]))
    run_native(native, clean)
    handle.remove()
    mask, width = corrupted.layout.mask("all"), held[0].shape[-1] // 4
    result = patching.get_act_patch_attn_head_out_by_pos(
        model, corrupted, cache, metric, axis=["all"], layers=[-1], progress=False
    )
    assert mask.all()
    for head in range(4):

        def edit(m, args, head=head):
            new = args[0].clone()
            columns = slice(head * width, (head + 1) * width)
            new[..., columns] = held[0][..., columns]
            return (new,)

        handle = project.register_forward_pre_hook(edit)
        want = metric(run_native(native, corrupted))
        handle.remove()
        assert (result.values[0, 0, head] - want).abs().max() < 1e-5


def test_batching_changes_nothing_but_rounding(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    one, many = (
        patching.get_act_patch_resid_pre(
            model, corrupted, cache, metric, axis=Grid(2, 2), batch_size=n, progress=False
        )
        for n in (1, 7)
    )
    assert torch.allclose(one.values, many.values, atol=1e-5)
    assert list(one.index_df["grid 2×2"][:2]) == ["row 0 col 0", "row 0 col 1"]


def test_results_of_several_images_stack(model):
    results = []
    for seed in range(3):
        corrupted, clean = (
            model.prepare("Eh?", random_image(31, 57 - 7 * seed, seed + k)) for k in (0, 9)
        )
        _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
        results.append(
            patching.get_act_patch_resid_pre(
                model, corrupted, cache, metric, axis=Grid(2, 1), layers=[0], progress=False
            )
        )
    whole = patching.stack(results)
    assert whole.values.shape == (1, 2, 3)
    assert torch.equal(whole.effect()[..., 1], results[1].effect()[..., 0])
    low, high = whole.bootstrap_ci(of_effect=True)
    assert (low <= high).all()
    assert whole.permutation_pvalue().shape == (1, 2)
    with pytest.raises(InputError, match="different sweeps"):
        patching.stack([results[0], patching.stack([results[1]])["metric"], _reduced(results[2])])


def _reduced(result):
    return patching.PatchingResult(
        result.values.mean(-1), result.axis_names, result.index_df, ["metric"], reduced=True
    )


def test_what_cannot_be_patched_is_refused(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre", layers=[0]))
    patch = patching.get_act_patch_resid_pre
    with pytest.raises(HookError, match="does not hold"):
        patch(model, corrupted, cache, metric, layers=[1], progress=False)
    with pytest.raises(HookError, match="cannot be patched by region"):
        patching.generic_activation_patch(model, corrupted, cache, metric, "pattern")
    with pytest.raises(InputError, match="No axis"):
        patch(model, corrupted, cache, metric, axis="colour", layers=[0], progress=False)
    with pytest.raises(InputError, match="scalar"):
        patch(model, corrupted, cache, lambda x: x, layers=[0], progress=False)
    mixed = {"a": metric, "b": lambda logits: metric(logits).mean()}
    with pytest.raises(InputError, match=r"'a': \(2,\), 'b': \(\)"):
        patch(model, corrupted, cache, mixed, layers=[0], progress=False)
    with pytest.raises(InputError, match="no metric"):
        patch(model, corrupted, cache, {}, layers=[0], progress=False)
    longer = model.prepare(["What is it now?", "Why?"], OTHER[1])
    with pytest.raises(InputError, match="token"):
        patch(model, longer, cache, metric, axis=["text"], layers=[0], progress=False)


def test_a_cache_without_batch_dimension(model):
    """As with it; and a cache of some positions is refused."""
    corrupted, clean = (model.prepare("Eh?", random_image(31, 57, s)) for s in (0, 1))
    only = mm_lens.names("resid_pre")
    patch = patching.get_act_patch_resid_pre
    options = {"axis": ["visual", "text"], "layers": [0, 1], "progress": False}
    _, cache = model.run_with_cache(clean, names_filter=only)
    _, bare = model.run_with_cache(clean, names_filter=only, remove_batch_dim=True)
    assert bare["resid_pre", 0].ndim == 2
    want = patch(model, corrupted, cache, metric, **options)
    assert torch.equal(patch(model, corrupted, bare, metric, **options).values, want.values)
    _, part = model.run_with_cache(clean, names_filter=only, pos_slice=slice(0, 5))
    with pytest.raises(InputError, match="without pos_slice"):
        patch(model, corrupted, part, metric, **options)


def test_hooks_of_the_corrupted_run_are_part_of_every_run(family, native):
    """A corruption by a hook at block 0, a part of it patched with what it took away: the rest is
    corrupted as in a native model with both hooks."""
    model = load_tiny(family, check=False)
    inputs = model.prepare("Eh?", random_image(31, 57))
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_pre"))
    visual = inputs.layout.mask("visual")
    some = visual & (torch.arange(visual.shape[1]) % 2 == 0)
    blind = ("blocks.0.visual.hook_resid_pre", lambda rows, hook: torch.zeros_like(rows))
    result = patching.get_act_patch_resid_pre(
        model,
        inputs,
        cache,
        metric,
        axis={"some": some, "text": "text"},
        corrupt_hooks=[blind],
        progress=False,
    )
    states = [native_states(native, inputs, layer)[0] for layer in range(3)]
    # The native embeddings of the corrupted run: what enters block 0, zero where it is visual.
    zero = native_patched(native, inputs, 0, visual, torch.zeros_like(states[0]))
    assert (result.baseline - metric(zero)).abs().max() < 1e-5

    def blinded(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden.masked_fill(visual[..., None], 0)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    handle = layers_of(native)[0].register_forward_pre_hook(blinded, with_kwargs=True)
    for layer in range(3):
        for k, mask in enumerate((some, inputs.layout.mask("text"))):
            want = metric(native_patched(native, inputs, layer, mask, states[layer]))
            assert (result.values[layer, k] - want).abs().max() < 1e-5
    handle.remove()
    assert result.effect().abs().max() > 1e-3
