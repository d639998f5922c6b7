"""Patching by region against a plain loop over the native model, with hooks on its modules."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io

import pandas as pd
import pytest
import torch
from causal_cases import BATCH, OTHER
from conftest import load_tiny
from native_runs import layers_of, metric, native_patched, native_states, run_native
from tiny import random_image

import mm_lens
from mm_lens import DataError, HookError, InputError
from mm_lens.causal import patching
from mm_lens.causal.answers import Answers
from mm_lens.causal.patching import Box, Grid

pytestmark = [pytest.mark.every_family, pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")]


# ---- what is said, by hand ----


def result_of(values, names=("a", "b"), metrics=("m",), baseline=None, **more):
    """A result of two regions in each layer, for as many examples as `values` has."""
    table = pd.DataFrame(
        {
            "layer": [la for la in range(len(values)) for _ in names],
            "region": [name for _ in values for name in names],
            "x0": 1.0,
        }
    )
    given = {"reduced": False, "baseline": baseline, "has_metric_axis": False, **more}
    return patching.PatchingResult(
        torch.tensor(values), ["layer", "region"], table, list(metrics), **given
    )


def test_stacked_by_hand():
    first = result_of([[[1.0], [2.0]]], baseline=torch.tensor([5.0]))
    second = result_of([[[3.0, 4.0], [6.0, 7.0]]], baseline=torch.tensor([8.0, 9.0]))
    both = patching.stack([first, second])
    assert both.values.tolist() == [[[1.0, 3.0, 4.0], [2.0, 6.0, 7.0]]]
    assert both.baseline.tolist() == [5.0, 8.0, 9.0]
    assert both.axis_names == ["layer", "region"]
    assert both.metric_names == ["m"]
    assert [*both.index_df.columns] == ["layer", "region"]  # boxes differ from image to image
    assert not both.reduced
    assert not both.has_metric_axis
    bare = result_of([[[1.0], [2.0]]])
    for results in ([first, bare], [bare, first], [bare]):
        assert patching.stack(results).baseline is None
    several = result_of([[[1.0], [2.0]]], has_metric_axis=True)
    assert patching.stack([several, several]).has_metric_axis


def test_results_of_other_sweeps_do_not_stack():
    first = result_of([[[1.0], [2.0]]])
    turned = patching.PatchingResult(
        first.values, ["layer", "place"], first.index_df, ["m"], reduced=False
    )
    for other in (
        turned,
        result_of([[[1.0], [2.0]]], names=("a", "c")),
        result_of([[[1.0], [2.0]]], metrics=("n",)),
        result_of([[[1.0], [2.0]]], reduced=True),
    ):
        for results in ([first, other], [first, first, other]):
            with pytest.raises(InputError) as error:
                patching.stack(results)
            assert str(error.value) == (
                "These results are of different sweeps, or their metric gave no value for each "
                "example. Stack results of the same layers, regions and metrics, whose metric "
                "returns [batch]; for images of different sizes sweep Grid(rows, cols)."
            )
    with pytest.raises(InputError, match=r"^There is no result to stack\.$"):
        patching.stack([])


def test_only_results_stack():
    """Each of them, in a list; as users call it, without the checks of types that tests have."""
    one = result_of([[[1.0], [2.0]]])
    for wrong in (iter([one]), [one, 1], [1]):
        with pytest.raises(InputError) as error:
            inspect.unwrap(patching.stack)(wrong)
        assert str(error.value) == "stack takes a list of results of sweeps of this module."


def test_baselines_of_several_metrics_stack_by_example():
    """[metric, example]: examples come last."""
    values = [[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]]
    one = patching.PatchingResult(
        torch.tensor(values),
        ["layer", "region"],
        result_of([[[1.0], [2.0]], [[1.0], [2.0]]]).index_df,
        ["m", "n"],
        reduced=False,
        baseline=torch.tensor([[5.0], [6.0]]),
        has_metric_axis=True,
    )
    assert patching.stack([one, one]).baseline.tolist() == [[5.0, 5.0], [6.0, 6.0]]


def test_a_sweep_is_the_general_one_for_one_activation(monkeypatch):
    """Its name, arguments and docstring are those of the general one without the activation."""
    calls = []

    def sweep_any(model, activation_name, *, heads=False, axis="cell"):
        """Sweep.

        Args: of all sweeps.

        Args:
            model: what is run.
            activation_name: where,
                as TransformerLens has it.
            heads: each of them apart.
            axis: of regions.

        Raises:
            InputError: never.
        """
        calls.append((model, activation_name, heads, axis))
        return patching.stack([result_of([[[1.0]]], names=("a",))])

    monkeypatch.setattr(patching, "generic_activation_patch", sweep_any)
    sweep = patching._make_sweep("z", "the thing", True)
    assert sweep.__name__ == sweep.__qualname__ == "get_act_patch_attn_head_out_by_pos"
    assert str(inspect.signature(sweep)) == "(model, *, axis='cell')"
    assert sweep.__doc__ == (
        "Patch the thing by region, for every layer and region.\n\n```python\n"
        '_, clean_cache = model.run_with_cache(clean, names_filter=mm_lens.names("z"))\n'
        "get_act_patch_attn_head_out_by_pos(model, corrupted, clean_cache, answers.logit_diff, "
        'axis="cell").plot()\n```\n\nArgs: of all sweeps.\n\nArgs:\n    model: what is run.\n'
        "    axis: of regions.\n\nRaises:\n    InputError: never."
    )
    sweep("a model", axis="tile")
    other = patching._make_sweep("mlp_out", "another")
    other(model="a model")
    assert other.__name__ == "get_act_patch_mlp_out"
    assert calls == [("a model", "z", True, "tile"), ("a model", "mlp_out", False, "cell")]
    sweep_any.__doc__ = None  # under `python -OO`
    assert patching._make_sweep("mlp_out", "another").__doc__.endswith("```\n\n")


def test_the_table_of_a_result_by_hand(model):
    """Layers from the slowest to the quickest axis, with the boxes of the regions."""
    corrupted, clean = (model.prepare("Eh?", random_image(40, 60, s)) for s in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(["z", "resid_pre"]))
    result = patching.get_act_patch_attn_head_out_by_pos(
        model, corrupted, cache, metric, axis=Grid(1, 2), layers=[-1, 0], progress=False
    )
    n = model.cfg.n_heads
    table = result.index_df
    assert [*table.columns] == ["layer", "grid 1×2", "head", "x0", "y0", "x1", "y1"]
    assert [*table.layer] == [2] * 2 * n + [0] * 2 * n
    assert [*table["grid 1×2"]] == 2 * (["row 0 col 0"] * n + ["row 0 col 1"] * n)
    assert [*table["head"]] == 4 * [*range(n)]
    assert [*table.x0] == 2 * ([0] * n + [30] * n)
    assert result.axis_names == ["layer", "grid 1×2", "head"]
    assert result.values.shape == (2, 2, n, 1)
    assert result.metric_names == ["metric"]
    assert not result.has_metric_axis
    assert not result.reduced
    assert result.inputs is corrupted
    assert result.regions.labels == ("row 0 col 0", "row 0 col 1")
    plain = patching.get_act_patch_resid_pre(
        model, corrupted, cache, metric, axis=["visual"], layers=[1], progress=False
    )
    assert [*plain.index_df.columns] == plain.axis_names == ["layer", "region"]


def test_several_metrics_by_name(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    options = {"axis": ["visual", "text"], "layers": [1], "progress": False}
    patch = patching.get_act_patch_resid_pre
    metrics = {"first": metric, "twice": lambda logits: 2 * metric(logits)}
    both = patch(model, corrupted, cache, metrics, **options)
    one = patch(model, corrupted, cache, metric, **options)
    assert both.metric_names == ["first", "twice"]
    assert both.has_metric_axis
    assert torch.equal(both.values[0], one.values)
    assert torch.equal(both.values[1], 2 * one.values)
    assert torch.equal(both.baseline, torch.stack([one.baseline, 2 * one.baseline]))
    mean = patch(model, corrupted, cache, lambda logits: metric(logits).mean(), **options)
    assert mean.reduced
    assert not one.reduced
    assert torch.allclose(mean.values, one.values.mean(-1), atol=1e-6)


def test_a_metric_of_answers_is_read_where_they_are(model):
    """At another position in each row; the same as from all logits."""
    corrupted, clean = (model.prepare(*x, padding_side="right") for x in (BATCH, OTHER))
    assert not corrupted.attention_mask.all()
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    answers = Answers(model, corrupted, ["a", "b"], right="a", wrong="b", tokens=[3, 5])
    last = corrupted.attention_mask.sum(1) - 1

    def plain(logits):
        here = logits[torch.arange(2), last]
        return here[:, 3] - here[:, 5]

    got, want = (
        patching.get_act_patch_resid_pre(
            model, corrupted, cache, which, axis=["visual"], layers=[1], progress=False
        )
        for which in (answers.logit_diff, plain)
    )
    assert torch.allclose(got.values, want.values, atol=1e-5)
    assert torch.allclose(got.baseline, want.baseline, atol=1e-5)


def test_refusals_are_said_in_full(model):
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    sweep = patching.generic_activation_patch

    def said(*args, **options):
        with pytest.raises((HookError, InputError)) as error:
            sweep(*args, **options)
        return str(error.value)

    good = (model, corrupted, cache, metric)
    assert said(*good, "pattern") == (
        "'pattern' cannot be patched by region. Use one of: resid_pre, resid_mid, resid_post, "
        "attn_out, mlp_out, z, q, k, v; for attention patterns transformer_lens.patching under "
        "model.bound(corrupted, clean)."
    )
    assert said(*good, "resid_pre", heads=True) == (
        "'resid_pre' has no heads: they are in z, q, k and v."
    )
    for name in "zqkv":  # which are in no cache here
        assert "does not hold" in said(*good, name, heads=True)
    assert said(model, corrupted, cache, {}, "resid_pre") == (
        "There is no metric: the mapping is empty. See mm_lens.answers."
    )
    shape = tuple(model(corrupted).shape)
    for wrong, shown in ((lambda x: x, shape), (lambda x: torch.zeros(3), (3,))):
        assert said(model, corrupted, cache, {"bad": wrong}, "resid_pre") == (
            f"The metric 'bad' returned the shape {shown}; it must return a scalar, or one value "
            "for each of the 2 row(s)."
        )
    model.train()
    try:
        training = said(*good, "resid_pre")
    finally:
        model.eval()
    assert training == "The model is in training mode; call model.eval() first."


def test_other_kinds_of_inputs_are_refused(model):
    """As the functions tell it: types are not checked where users run them."""
    corrupted = model.prepare(*BATCH)
    _, cache = model.run_with_cache(corrupted, names_filter=mm_lens.names("resid_pre"))
    check = patching.check_sweep
    while hasattr(check, "__wrapped__"):
        check = check.__wrapped__
    with pytest.raises(InputError, match=r"what model\.prepare\(text, images\) returns, not bare"):
        check(model, corrupted.input_ids, cache, "resid_pre", False)
    with pytest.raises(InputError, match=r"what model\.run_with_cache\(clean\) of this model"):
        check(model, corrupted, {}, "resid_pre", False)


def test_a_cache_of_another_model_is_refused(model):
    """Told by its weights: a copy will do."""
    inputs = model.prepare(*BATCH)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_pre"))
    twin = copy.deepcopy(model)
    cache.model = twin
    patching.check_sweep(model, inputs, cache, "resid_pre", False)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    with pytest.raises(InputError) as error:
        patching.check_sweep(model, inputs, cache, "resid_pre", False)
    assert str(error.value) == (
        "The clean cache is of another model: its activations mean something else here. Run "
        "model.run_with_cache(clean) of this model."
    )


def test_a_saved_sweep_is_resumed_for_the_same_alone(model, tmp_path, monkeypatch):
    corrupted, clean, third = (model.prepare("Eh?", random_image(31, 57, s)) for s in range(3))
    kept = mm_lens.names(["resid_pre", "attn_out"])
    (_, cache), (_, another) = (model.run_with_cache(x, names_filter=kept) for x in (clean, third))
    given = {
        "model": model,
        "corrupted": corrupted,
        "clean_cache": cache,
        "patching_metric": metric,
        "activation_name": "resid_pre",
        "axis": ["visual"],
        "layers": [1],
        "save": tmp_path / "sweep",
    }
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        first = patching.generic_activation_patch(**given)
    assert "patching resid_pre by region: 100%" in shown.getvalue()
    given["progress"] = False
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        assert torch.equal(patching.generic_activation_patch(**given).values, first.values)
    assert shown.getvalue() == ""
    visual = corrupted.layout.mask("visual")
    for change in (
        {"corrupted": third},
        {"clean_cache": another},
        {"patching_metric": lambda logits: 2 * metric(logits)},
        {"activation_name": "attn_out"},
        {"axis": {"image": "visual"}},
        {"axis": {"visual": visual & (visual.cumsum(1) > 1)}},
        {"layers": [0]},
        {"resample": "mean"},
        {"corrupt_hooks": [("blocks.0.hook_resid_pre", lambda x, hook: x)]},
    ):
        with pytest.raises(DataError, match="holds another sweep"):
            patching.generic_activation_patch(**given | change)
    monkeypatch.setattr(patching, "weights_digest", lambda model: "of other weights")
    with pytest.raises(DataError, match="holds another sweep"):
        patching.generic_activation_patch(**given)


# ---- against native models ----


def test_means_of_a_region_equal_a_native_loop(model, native):
    """Each token gets the mean of the clean tokens of its kind; the nearest is what is usual."""
    corrupted, clean = (model.prepare("Eh?", random_image(31, 57, s)) for s in (0, 1))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    patch, options = patching.get_act_patch_resid_pre, {"layers": [1], "progress": False}
    result = patch(model, corrupted, cache, metric, axis=["visual"], resample="mean", **options)
    states, layout = native_states(native, clean, 1)[0], clean.layout
    visual, means = layout.mask("visual"), native_states(native, clean, 1)[0].clone()
    overview, newline = visual & (layout.tile == 0), visual & layout.newline
    for kind in (overview, newline, visual & ~overview & ~newline):
        if kind.any():
            means[kind] = states[kind].mean(0)
    want = metric(native_patched(native, corrupted, 1, visual, means))
    assert (result.values[0, 0] - want).abs().max() < 1e-5
    usual = patch(model, corrupted, cache, metric, axis=["visual"], progress=False)
    for layer in range(3):
        states = native_states(native, clean, layer)[0]
        want = metric(native_patched(native, corrupted, layer, visual, states))
        assert (usual.values[layer, 0] - want).abs().max() < 1e-5
    assert (usual.values[1] - result.values[0]).abs().max() > 1e-4
    with pytest.raises(InputError) as error:
        inspect.unwrap(patching.generic_activation_patch)(
            model, corrupted, cache, metric, "resid_pre", resample="median"
        )
    assert str(error.value) == 'resample is "nearest" or "mean", not \'median\'.'


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
