"""Modality hook points against masked full-stream hooks and TransformerLens's own semantics."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import load_tiny
from tiny import random_image
from transformer_lens import patching, utilities
from transformer_lens.hook_points import HookPoint, _AliasedHookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

import mm_lens
from mm_lens.model.forward import ForwardContext
from mm_lens.model.hooks import (
    PARENTS,
    GuardedHookPoint,
    ModalityHookPoint,
    ViewHandle,
    canonical,
    find_frame,
    install_views,
    narrow,
    uninstall_views,
)
from mm_lens.model.parts.guards import guard
from mm_lens.model.running.frames import Frame, Selection

pytestmark = pytest.mark.every_family


def masked_edit(mask, edit):
    """A full-stream hook that edits only where `mask` [batch, pos] is set: independent truth."""

    def hook(tensor, hook):
        at = mask.reshape(*mask.shape, *[1] * (tensor.ndim - 2))
        return torch.where(at, edit(tensor), tensor)

    return hook


def noise_like(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows.shape[1:], generator=generator).to(rows)


# ---- names ----


def named(*args, **options):
    return {name for name in NAMES if mm_lens.names(*args, **options)(name)}


NAMES = [
    *(f"blocks.{i}.{path}" for i in (0, 1, 12) for path in ("hook_resid_post", "attn.hook_q")),
    *(f"blocks.{i}.{g}.hook_{h}" for i in (0, 1, 12) for g in ("visual", "text") for h in "qk"),
    "blocks.1.visual.hook_resid_post",
    "vision.blocks.1.hook_resid_post",
    "vision.1.hook_resid_post",
    "blocks.1.attn.hook_resid_post",
    "hook_resid_post",
    "blocks",
]


def test_names_by_hand():
    posts = {f"blocks.{i}.hook_resid_post" for i in (0, 1, 12)}
    queries = {f"blocks.{i}.attn.hook_q" for i in (0, 1, 12)}
    assert named("resid_post") == posts
    assert named(["resid_post", "q"]) == posts | queries
    assert named("q", layers=[1, 12]) == {"blocks.1.attn.hook_q", "blocks.12.attn.hook_q"}
    assert named("q", layers=[0]) == {"blocks.0.attn.hook_q"}
    visual = {f"blocks.{i}.visual.hook_q" for i in (0, 1, 12)}
    assert named("q", "visual") == named("q", modality=["visual"]) == visual
    both = {f"blocks.{i}.{g}.hook_{h}" for i in (0, 12) for g in ("visual", "text") for h in "qk"}
    assert named(["q", "k"], ["visual", "text"], [0, 12]) == both


def test_names_that_cannot_be_are_named():
    for options, said in (
        ({"hook": "q", "layers": []}, "layers= names no layer. Leave it out to take all."),
        (
            {"hook": ["q", "hook_q"]},
            "No hook point is called 'hook_q'. Use: resid_pre, resid_mid, resid_post, attn_out, "
            "mlp_out, q, k, v, z, pre, post.",
        ),
        (
            {"hook": "q", "modality": ["text", "newline"]},
            "There are no hook points for 'newline', only for visual, text. Leave modality out for "
            "all tokens; select others from the full stream with layout.mask(...).",
        ),
        (
            {"hook": "q", "layers": [2, -1]},
            "Layers are counted from 0 here: the filter does not know the last one.",
        ),
    ):
        with pytest.raises(mm_lens.InputError) as error:
            mm_lens.names(**options)
        assert str(error.value) == said


def test_arguments_of_another_kind_are_told():
    """As users call it, without the checks of types that tests have."""
    anyhow = inspect.unwrap(mm_lens.names)
    for hook, layers in (([], None), (None, None), ("q", 3)):
        with pytest.raises(mm_lens.InputError) as error:
            anyhow(hook, layers=layers)
        assert str(error.value) == (
            'names takes hook points and a list of layers, as names(["resid_post", "z"], '
            f"layers=[0, 5]), not {hook!r} and {layers!r}."
        )
    with pytest.raises(mm_lens.InputError, match=r"^A layer is a whole number, not float 1\.5\.$"):
        anyhow("q", layers=[0, 1.5])
    with pytest.raises(mm_lens.InputError, match=r"pre, post\. Did you mean 'resid_post'\?$"):
        mm_lens.names("resid_pots")


def test_names_spelled_out_by_hand():
    queries = ["blocks.0.attn.hook_q", "blocks.1.attn.hook_q"]
    assert mm_lens.names("q").spell(2) == queries
    assert mm_lens.names("q", layers=[1, 0, 0]).spell(1) == queries
    assert mm_lens.names(["q", "k"], ["visual", "text"], [7]).spell(1) == [
        f"blocks.7.{tail}"
        for tail in ("text.hook_k", "text.hook_q", "visual.hook_k", "visual.hook_q")
    ]


def test_spellings_by_hand():
    assert canonical("blocks.12.hook_visual_resid_post") == "blocks.12.visual.hook_resid_post"
    assert canonical("blocks.3.hook_text_q") == "blocks.3.text.hook_q"
    for name in (
        "blocks.3.hook_newline_q",
        "blocks.3.hook_visual_nothing",
        "blocks.3.visual.hook_q",
        "blocks.x.hook_visual_q",
        "embed.hook_out",
    ):
        assert canonical(name) == name


# ---- hook points that guard ----


def guarded_point(where=None):
    point = HookPoint()
    point.name = "some.hook_out"
    guard(point, "Do that.", **({} if where is None else {"where": where}))
    return point


def run_at(point, edit, x, **options):
    point.add_hook(edit, **options)
    try:
        return point(x)
    finally:
        point.remove_hooks()


def test_a_guard_lets_readers_and_idle_edits_pass():
    x = torch.tensor([[[1.0, math.nan], [2.0, 3.0]]])
    point, seen = guarded_point(), []
    assert type(point) is GuardedHookPoint
    for edit in (
        lambda t, hook: seen.append(hook) or None,
        lambda t, hook: t,
        lambda t, hook: t.clone(),
    ):
        assert torch.equal(run_at(point, edit, x), x) or x.isnan().any()
    assert seen == [point]
    for edit in (lambda t, hook: t + 1, lambda t, hook: t.nan_to_num(0.0), lambda t, hook: t * 0):
        with pytest.raises(mm_lens.HookError) as error:
            run_at(point, edit, x.clone())
        said = "An edit at some.hook_out does not reach the output. Do that."
        assert str(error.value) == said

    def in_place(t, hook):
        t[0, 1, 1] = 7.0

    with pytest.raises(mm_lens.HookError, match="does not reach the output"):
        run_at(point, in_place, x.clone())


def test_a_guard_of_some_positions_lets_the_others_be_edited():
    x = torch.arange(6.0).view(1, 3, 2)
    asked = []

    def where(before):
        asked.append(before.clone())
        return torch.tensor([[False, True, False]])

    point = guarded_point(where)

    def edit(position):
        def hook(t, hook):
            t[0, position] = -1.0

        return hook

    assert run_at(point, edit(0), x.clone())[0, 0].tolist() == [-1, -1]
    assert torch.equal(asked[0], x), "told by what was there before"
    with pytest.raises(mm_lens.HookError, match="Do that"):
        run_at(point, edit(1), x.clone())
    asked.clear()
    run_at(point, lambda t, hook: None, x)
    assert asked == [], "asked only when something changed"


def test_a_guard_is_put_on_once_and_can_be_taken_off():
    point = guarded_point()
    guard(point, "Something else.")
    with pytest.raises(mm_lens.HookError, match="Do that"):
        run_at(point, lambda t, hook: t + 1, torch.zeros(1, 1, 1))
    point.add_hook(lambda t, hook: t + 1)
    point.__class__ = HookPoint  # as uninstalling does
    assert point(torch.zeros(1, 1, 1)).item() == 1
    other = GuardedHookPoint()
    guard(other, "Nothing.")
    assert not hasattr(other, "_inert")


def test_a_guard_lets_gradients_be_edited():
    point = guarded_point()
    point.add_hook(lambda gradient, hook: (gradient * 3,), dir="bwd")
    x = torch.ones(1, 2, 2, requires_grad=True)
    point(x * 1).sum().backward()
    assert x.grad is not None
    point.remove_hooks("both")


def test_hooks_outside_of_a_model_know_no_positions():
    point = HookPoint()
    point.name = "some.hook_out"
    with pytest.raises(mm_lens.HookError) as error:
        find_frame(point)
    assert str(error.value) == (
        "What the positions at some.hook_out are is unknown: run the hook in a model of "
        "mm_lens.load, at a hook point of its blocks."
    )


def test_a_hook_at_a_view_must_keep_the_shape(model, batch):
    shape = (*batch.layout.valid("visual").shape, model.cfg.d_model)
    name = "blocks.1.visual.hook_resid_post"
    for result, got in (
        (torch.zeros(1, 2), "(1, 2)"),
        ((torch.zeros(shape), None), "<class 'tuple'>"),
        ("text", "<class 'str'>"),
    ):
        with pytest.raises(mm_lens.HookError) as error:
            model.run_with_hooks(batch, fwd_hooks=[(name, lambda x, hook, r=result: r)])
        assert str(error.value) == (
            f"The hook at {name} returned {got}; it must return None or a tensor of shape {shape} "
            "[batch, n_visual, ...]."
        )
    plain = model(batch)
    one = model.run_with_hooks(batch, fwd_hooks=[(name, lambda x, hook: (x * 2,))])
    two = model.run_with_hooks(batch, fwd_hooks=[(name, lambda x, hook: x * 2)])
    assert torch.equal(one, two)
    assert not torch.equal(one, plain)


# ---- views of a point that is in no model ----


class Told(ForwardContext):
    """A forward pass of which it is told by hand where a group is."""

    def __init__(self, selection, frame=None):
        self.selection, self.asked, self.is_frame = selection, [], frame

    def select(self, group, hook):
        self.asked.append((group, hook))
        return self.selection

    @property
    def frame(self):
        return self.is_frame


HERE = Selection(torch.tensor([[1, 3], [2, 0]]), torch.tensor([[True, True], [True, False]]))
"""Two positions of the first row, one of the second."""


def a_view(selection=HERE, group="visual"):
    view = ModalityHookPoint(HookPoint(), group, Told(selection))
    view.name = f"blocks.0.{group}.hook_q"
    return view


def numbers():
    return torch.arange(8.0).view(2, 4, 1)


def shown(x):
    return x[..., 0].tolist()


def test_a_view_gathers_and_scatters_by_hand():
    view, seen, x = a_view(), [], numbers()

    def look(rows, hook):
        seen.append((shown(rows), hook))

    def double_in_place(rows, hook):
        rows *= 2

    view.add_hook(look)
    assert view.parent(x) is x
    assert seen == [([[1, 3], [6, 0]], view)]
    assert view._context.asked == [("visual", "blocks.0.visual.hook_q")]
    view.add_hook(lambda rows, hook: rows)
    assert view.parent(x) is x
    negative = [[0, -1, 2, -3], [4, 5, -6, 7]]
    for edit in (lambda rows, hook: -rows, lambda rows, hook: (-rows,)):
        view.remove_hooks()
        view.add_hook(edit)
        assert shown(view.parent(x)) == negative
    assert shown(x) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    view.add_hook(double_in_place)
    assert shown(view.parent(x)) == [[0, -2, 2, -6], [4, 5, -12, 7]]
    view.name = None
    view.parent(x)
    assert view._context.asked[-1] == ("visual", "The hook point")
    one = a_view(Selection(torch.tensor([[1, 3]]), torch.tensor([[True, True]])))
    one.add_hook(lambda rows, hook: rows + 1)
    assert shown(one.parent(x[:1])) == [[0, 2, 2, 4]]
    none = a_view(None)
    none.add_hook(look)
    assert none.parent(x) is x
    assert len(seen) == 2


def test_what_a_hook_at_a_view_may_return_by_hand():
    view = a_view(group="text")
    for wrong, got in (
        (torch.zeros(2, 1, 1), "(2, 1, 1)"),
        ((torch.zeros(2, 2, 1), None), "<class 'tuple'>"),
        ("rows", "<class 'str'>"),
    ):
        view.remove_hooks()
        view.add_hook(lambda rows, hook, wrong=wrong: wrong)
        with pytest.raises(mm_lens.HookError) as error:
            view.parent(numbers())
        assert str(error.value) == (
            f"The hook at blocks.0.text.hook_q returned {got}; it must return None or a tensor of "
            "shape (2, 2, 1) [batch, n_text, ...]."
        )


def test_a_view_and_its_parent_list_the_same_hooks():
    view = a_view()
    parent, sibling = view.parent, ModalityHookPoint(view.parent, "text", view._context)

    def look(x, hook):
        pass

    whole = parent.add_hook(look)
    first = view.add_hook(look)
    assert isinstance(first, ViewHandle)
    assert (first.is_permanent, first.context_level) == (False, None)
    second = view.add_hook(look, "fwd", is_permanent=True, level=3)
    assert (second.is_permanent, second.context_level) == (True, 3)
    assert second.user_hook is look
    assert second.view is view
    before = view.add_hook(look, prepend=True)
    other = sibling.add_hook(look)
    assert parent.fwd_hooks == [before, whole, first, second, other]
    assert view.fwd_hooks == [before, first, second]
    assert sibling.fwd_hooks == [other]
    assert len(parent._forward_hooks) == 5
    backward = view.add_hook(look, dir="bwd")
    earlier = view.add_hook(look, dir="bwd", prepend=True)
    assert parent.bwd_hooks == view.bwd_hooks == [earlier, backward]
    assert sibling.bwd_hooks == []
    assert parent.fwd_hooks == [before, whole, first, second, other]
    assert len(parent._forward_hooks) == 7  # backward hooks are made in the forward pass
    first.hook.remove()
    assert parent.fwd_hooks == [before, whole, second, other]
    assert parent.bwd_hooks == [earlier, backward]
    backward.hook.remove()
    assert view.bwd_hooks == [earlier]
    assert parent.fwd_hooks == [before, whole, second, other]
    parent.remove_hooks()
    assert view.fwd_hooks == [second]
    assert len(parent._forward_hooks) == 2
    with pytest.raises(ValueError, match=r"^Invalid direction up$"):
        inspect.unwrap(ModalityHookPoint.add_hook)(view, look, dir="up")
    assert len(parent._forward_hooks) == 2


def test_the_order_of_hooks_of_a_view_by_hand():
    view, ran = a_view(), []
    for name, options in (("b", {}), ("c", {}), ("a", {"prepend": True})):
        view.add_hook(lambda rows, hook, name=name: ran.append(name), **options)
    view.parent(numbers())
    assert ran == ["a", "b", "c"]


def test_other_spellings_of_a_view_run_one_after_the_other():
    view, seen = a_view(), []

    def edit(rows, hook):
        seen.append((hook.name, hook._target, shown(rows)))
        return None if hook.name == "first" else rows + 1

    view.add_hook(edit, alias_names=["first", "second", "third"])
    assert shown(view.parent(numbers())) == [[0, 3, 2, 5], [4, 5, 8, 7]]
    assert seen == [
        ("first", view, [[1, 3], [6, 0]]),
        ("second", view, [[1, 3], [6, 0]]),
        ("third", view, [[2, 4], [7, 1]]),
    ]


def test_gradients_at_a_view_by_hand():
    """Of the sum of what is there times 0 to 7."""
    view, seen, weights = a_view(), [], numbers()
    x = torch.ones(2, 4, 1, requires_grad=True)

    def find_gradient(edit):
        handle = view.add_hook(edit, dir="bwd")
        x.grad = None
        (view.parent(x * 1) * weights).sum().backward()
        handle.hook.remove()
        return shown(x.grad)

    plain = find_gradient(lambda gradient, hook: seen.append((hook, shown(gradient))))
    assert seen == [(view, [[1, 3], [6, 0]])]
    assert plain == [[0, 1, 2, 3], [4, 5, 6, 7]]
    edited = find_gradient(lambda gradient, hook: (10 * gradient,))
    assert edited == [[0, 10, 2, 30], [4, 5, 60, 7]]
    view.add_hook(lambda gradient, hook: seen.append("again"), dir="bwd")
    fixed = numbers()
    assert view.parent(fixed) is fixed  # without a gradient nothing is added
    assert len(seen) == 1


def test_a_view_with_hooks_is_not_copied():
    for direction in ("fwd", "bwd"):
        view = a_view()
        assert view.__getstate__() is view.__dict__
        view.add_hook(lambda rows, hook: None, dir=direction)
        with pytest.raises(mm_lens.HookError) as error:
            view.__getstate__()
        assert str(error.value) == (
            "blocks.0.visual.hook_q has hooks, which would still work on the original in a copy. "
            "Take them off first: model.reset_hooks(including_permanent=True)."
        )


def test_a_filter_by_hand():
    """Of a point and its view, the point; a view alone; none that never fires."""
    view, alone = a_view(), a_view()
    points = {"whole": view.parent, "view": view, "alone": alone}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert narrow(points, lambda name: None) == {"whole", "alone"}
    dead = {"b.dead": a_view(), "a.dead": a_view(), "c.dead": a_view()}

    def remedy(name):
        return f"Not {name}." if name in dead else None

    with pytest.warns(mm_lens.MMLensWarning) as warned:
        assert narrow({**points, **dead}, remedy) == {"whole", "alone"}
    assert [str(w.message) for w in warned] == [
        "3 hook points that the filter matches never fire and are left out, a.dead among them. Not "
        "a.dead."
    ]


def test_the_pass_of_a_hook_point_by_hand():
    frame = Frame.__new__(Frame)
    point = HookPoint()
    vars(point)["_forward_context"] = Told(None, frame)
    assert find_frame(point) is frame
    assert find_frame(_AliasedHookPoint("another.name", point)) is frame


def test_views_are_put_on_and_taken_off_by_hand():
    """Two blocks; the second has no attention and no `hook_resid_pre`."""
    names = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_q", "blocks.1.mlp.hook_post"]
    known = {name: HookPoint() for name in [*names, "hook_embed"]}
    guard(known["blocks.0.attn.hook_q"], "Nothing.")
    blocks = [SimpleNamespace(_hook_registry={"own": HookPoint()}) for _ in range(2)]
    bridge = SimpleNamespace(hook_dict=known, blocks=blocks, _hook_registry={**known})
    context = Told(HERE)
    install_views(bridge, context, ("visual", "text"))
    want = {
        f"blocks.{block}.{group}.hook_{short}": known[parent]
        for block, short, parent in zip((0, 0, 1), ("resid_pre", "q", "post"), names, strict=True)
        for group in ("visual", "text")
    }
    made = {name: bridge._hook_registry[name] for name in want}
    assert [*bridge._hook_registry] == [*known, *made]
    for name, view in made.items():
        assert (view.name, view.group) == (name, name.split(".")[2])
        assert view.parent is want[name]
        assert vars(view.parent)["_forward_context"] is view._context is context
        short = name.split(".", 2)[2]
        assert blocks[int(name.split(".")[1])]._hook_registry[short] is view
        view.add_hook(lambda rows, hook: None, is_permanent=True)
        view.add_hook(lambda rows, hook: None, dir="bwd")
    assert [len(block._hook_registry) for block in blocks] == [5, 3]
    uninstall_views(bridge)
    assert [*bridge._hook_registry] == [*known]
    assert [[*block._hook_registry] for block in blocks] == [["own"], ["own"]]
    for point in known.values():
        assert type(point) is HookPoint
        assert not point._forward_hooks
        assert "_forward_context" not in vars(point)


# ---- views ----


@pytest.mark.parametrize("group", ["visual", "text"])
@pytest.mark.parametrize("short", PARENTS)
def test_edit_equals_masked_full_stream_edit(model, batch, short, group):
    mask = batch.layout.mask(group)
    view = model.run_with_hooks(
        batch, fwd_hooks=[(f"blocks.1.{group}.hook_{short}", lambda x, hook: -1.5 * x)]
    )
    full = model.run_with_hooks(
        batch, fwd_hooks=[(f"blocks.1.{PARENTS[short]}", masked_edit(mask, lambda x: -1.5 * x))]
    )
    assert torch.equal(view, full)
    assert not torch.equal(view, model(batch))


@pytest.mark.parametrize("short", PARENTS)
def test_cached_rows_are_the_masked_rows(model, batch, short):
    names = [f"blocks.2.{group}.hook_{short}" for group in ("visual", "text")]
    _, views = model.run_with_cache(batch, names_filter=names)
    _, full = model.run_with_cache(batch, names_filter=[f"blocks.2.{PARENTS[short]}"])
    tensor = full[f"blocks.2.{PARENTS[short]}"]
    for group, name in zip(("visual", "text"), names, strict=True):
        layout = batch.layout
        rows, valid = views[name], layout.valid(group)
        assert rows.shape[:2] == valid.shape
        assert torch.equal(rows[valid], tensor[layout.mask(group)])
        assert not rows[~valid].any()


def test_edit_leaves_text_below_bit_identical(model, batch):
    names = mm_lens.names("resid_post", modality=["visual", "text"])
    _, before = model.run_with_cache(batch, names_filter=names)
    with model.hooks(fwd_hooks=[("blocks.1.visual.hook_resid_post", lambda x, hook: x + 1)]):
        _, after = model.run_with_cache(batch, names_filter=names)
    for layer in (0, 1):
        assert torch.equal(before["resid_post", layer, "text"], after["resid_post", layer, "text"])
    assert torch.equal(before["resid_post", 0, "visual"], after["resid_post", 0, "visual"])
    valid = batch.layout.valid("visual")
    change = after["resid_post", 1, "visual"] - before["resid_post", 1, "visual"]
    assert torch.allclose(change[valid], torch.ones_like(change[valid]), atol=1e-5)
    assert not torch.equal(before["resid_post", 2, "text"], after["resid_post", 2, "text"])


def test_in_place_edit_is_written_back(model, batch):
    def in_place(rows, hook):
        rows[:, 3] = 0

    def returned(rows, hook):
        rows = rows.clone()
        rows[:, 3] = 0
        return rows

    name = "blocks.0.visual.hook_resid_post"
    one, two = (model.run_with_hooks(batch, fwd_hooks=[(name, h)]) for h in (in_place, returned))
    assert torch.equal(one, two)
    assert not torch.equal(one, model(batch))


def test_order_of_attachment_is_order_of_effect(model, batch):
    view, full = "blocks.0.visual.hook_resid_post", "blocks.0.hook_resid_post"
    seen = {}

    def plus(x, hook):
        return x + 1

    def look(x, hook):
        seen[hook.name] = x.clone()

    _, cache = model.run_with_cache(batch, names_filter=[view])
    model.run_with_hooks(batch, fwd_hooks=[(full, plus), (view, look)])
    valid = batch.layout.valid("visual")
    assert torch.equal(seen[view][valid], (cache[view] + 1)[valid])
    model.run_with_hooks(batch, fwd_hooks=[(view, look), (full, plus)])
    assert torch.equal(seen[view], cache[view])


def test_hook_of_wrong_shape_raises(model, batch):
    with pytest.raises(mm_lens.HookError, match=r"returned \(3, 2"):
        model.run_with_hooks(
            batch, fwd_hooks=[("blocks.0.visual.hook_resid_post", lambda x, hook: x[:, :2])]
        )
    assert not any(p.has_hooks() for p in model.hook_points())


def test_names_filter_forms(model, batch):
    name = "blocks.1.visual.hook_resid_post"
    for names_filter in (name, [name], lambda n: n == name, mm_lens.names("resid_post", "visual")):
        _, cache = model.run_with_cache(batch, names_filter=names_filter)
        assert name in cache.keys()  # noqa: SIM118 (an ActivationCache is not a mapping)
    assert torch.equal(cache["resid_post", 1, "visual"], cache[name])
    assert torch.equal(cache["resid_post", -2, "visual"], cache[name])
    stacked = cache.stack_activation("resid_post", sublayer_type="visual")
    assert torch.equal(stacked[1], cache[name])
    with pytest.raises(KeyError, match="matched no hook points"):
        model.run_with_cache(batch, names_filter="blocks.1.visual.hook_nonsense")
    with pytest.raises(mm_lens.InputError, match="resid_pre"):
        mm_lens.names("nonsense")


def test_modality_key_is_not_overruled(model, batch):
    """TransformerLens maps ("q", 1, "visual") to the full stream's blocks.1.attn.hook_q."""
    _, cache = model.run_with_cache(batch, names_filter=mm_lens.names("q", ["visual", "text"]))
    assert utilities.get_act_name("q", 1, "visual") == "blocks.1.attn.hook_q"  # canary
    assert torch.equal(cache["q", 1, "visual"], cache["blocks.1.visual.hook_q"])


def test_aliases_resolve_but_are_cached_once(model, batch):
    alias, name = "blocks.1.hook_visual_resid_post", "blocks.1.visual.hook_resid_post"
    edit = [(alias, lambda x, hook: x * 0)]
    same = [(name, lambda x, hook: x * 0)]
    assert torch.equal(
        model.run_with_hooks(batch, fwd_hooks=edit), model.run_with_hooks(batch, fwd_hooks=same)
    )
    _, cache = model.run_with_cache(batch, names_filter=alias)
    assert torch.equal(cache[alias], cache[name])
    assert torch.equal(cache["visual_resid_post", 1], cache[name])
    assert model.get_hook_point(alias) is model.hook_dict[name]
    model.add_hook(alias, lambda x, hook: None)
    assert len(model.hook_dict[name].fwd_hooks) == 1
    model.reset_hooks()
    _, everything = model.run_with_cache(batch)
    assert not {name, alias} & everything.cache_dict.keys()
    assert torch.equal(everything[alias], cache[name])


def test_generic_activation_patch(model):
    """The generic sweep of TransformerLens, on visual tokens, against a plain loop."""
    clean = model.prepare("What is it?", random_image(20, 33, 1))
    corrupted = model.prepare("What is it?", random_image(20, 33, 2))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_post", "visual"))

    def metric(logits):
        return logits[0, -1, 5]

    def setter(corrupted_activation, index, clean_activation):
        corrupted_activation[:, :] = clean_activation
        return corrupted_activation

    with model.bound(corrupted):
        got = patching.generic_activation_patch(
            model,
            corrupted.input_ids,
            cache,
            metric,
            setter,
            activation_name="visual_resid_post",
            index_axis_names=["layer"],
        )
    mask = clean.layout.mask("visual")
    _, full = model.run_with_cache(clean, names_filter=mm_lens.names("resid_post"))
    for layer in range(model.cfg.n_layers):
        donor = full["resid_post", layer]
        want = metric(
            model.run_with_hooks(
                corrupted,
                fwd_hooks=[
                    (
                        f"blocks.{layer}.hook_resid_post",
                        masked_edit(mask, lambda x, donor=donor: donor),
                    )
                ],
            )
        )
        assert torch.equal(got[layer], want)


def test_handles_levels_and_permanence(fresh):
    name, other = "blocks.0.visual.hook_resid_post", "blocks.0.text.hook_resid_post"
    view, parent = fresh.hook_dict[name], fresh.hook_dict["blocks.0.hook_resid_post"]

    fresh.add_hook(name, lambda x, hook: None)
    fresh.add_perma_hook(other, lambda x, hook: None)
    fresh.add_hook("blocks.0.hook_resid_post", lambda x, hook: None)
    assert (len(view.fwd_hooks), len(parent.fwd_hooks)) == (1, 3)
    assert set(fresh.list_hooks()) >= {name, other}
    fresh.reset_hooks()
    assert (len(view.fwd_hooks), len(parent.fwd_hooks)) == (0, 1)
    assert view.has_hooks() is False
    assert fresh.hook_dict[other].has_hooks() is True
    fresh.reset_hooks(including_permanent=True)
    assert not parent.fwd_hooks
    assert not parent._forward_hooks

    inputs = fresh.prepare("a", random_image(9, 9))
    with fresh.hooks(fwd_hooks=[(name, lambda x, hook: x * 0)], bwd_hooks=[]):
        assert view.fwd_hooks[0].context_level == 1
        inside = fresh(inputs)
    assert not view.fwd_hooks
    assert not torch.equal(inside, fresh(inputs))

    handle = view.add_hook(lambda x, hook: None, level=4)
    view.add_hook(lambda x, hook: None, level=5)
    parent.remove_hooks("both", level=4)
    assert [h.context_level for h in view.fwd_hooks] == [5]
    handle.hook.remove()  # removed already: harmless
    view.remove_hooks("both")
    assert not parent._forward_hooks

    first = []
    view.add_hook(lambda x, hook: first.append("second"))
    view.add_hook(lambda x, hook: first.append("first"), prepend=True)
    fresh(inputs)
    assert first == ["first", "second"]


def test_a_view_keeps_and_loses_hooks_as_a_plain_hook_point_does():
    """The same calls of TransformerLens's own HookPoint and of a view: the same hooks are left."""
    plain, view = HookPoint(), a_view()
    for point in (plain, view):
        point.add_perma_hook(first := called("permanent"))
        point.add_hook(called("at level 1"), level=1)
        point.add_hook(called("permanent at level 2"), is_permanent=True, level=2)
        point.add_hook(called("at level 2"), level=2, prepend=True)
        point.add_hook(called("backward"), dir="bwd", level=1)
        point.add_perma_hook(first, dir="bwd")

    def left(point):
        return [
            (side, h.user_hook.__name__, h.is_permanent, h.context_level)
            for side in ("fwd_hooks", "bwd_hooks")
            for h in getattr(point, side)
        ]

    assert left(view) == left(plain)
    assert len(left(plain)) == 6
    for options in (
        {"level": 1},
        {"dir": "both", "level": 1},
        {"dir": "both"},
        {"dir": "both", "including_permanent": True, "level": 2},
        {"dir": "both", "including_permanent": True},
    ):
        for asked in ({}, {"including_permanent": False}, {"level": 2}, {"dir": "bwd"}):
            assert view.has_hooks(**asked) == plain.has_hooks(**asked)
        before = len(left(plain))
        for point in (plain, view):
            point.remove_hooks(**options)
        assert left(view) == left(plain)
        assert len(left(plain)) < before
    assert not view.parent._forward_hooks


def called(name):
    def hook(x, hook):
        pass

    hook.__name__ = name
    return hook


def test_views_without_hooks_leave_the_forward_alone(fresh):
    """No hook of a view, no code on the path: not even a torch hook."""
    views = [p for p in fresh.hook_points() if isinstance(p, ModalityHookPoint)]
    assert len(views) == 2 * len(PARENTS) * fresh.cfg.n_layers
    assert not any(view.parent._forward_hooks for view in views)


@pytest.mark.parametrize("name", ["resid_post", "q", "z", "post"])
def test_backward_hooks_see_their_rows_and_can_edit(model, batch, name):
    parent = f"blocks.1.{PARENTS[name]}"
    view = f"blocks.1.visual.hook_{name}"
    full, rows = {}, {}

    def keep_full(tensor, hook):
        tensor.retain_grad()
        full["x"] = tensor
        return tensor

    def keep_rows(gradient, hook):
        rows["grad"] = gradient.clone()

    with model.hooks(fwd_hooks=[(parent, keep_full)], bwd_hooks=[(view, keep_rows)]):
        model(batch)[:, -1].square().sum().backward()
    model.zero_grad()
    layout = batch.layout
    want = full["x"].grad[layout.mask("visual")]
    assert want.abs().max() > 0
    assert torch.equal(rows["grad"][layout.valid("visual")], want)

    below = {}
    with model.hooks(
        fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: below.update(x=x) or x)],
        bwd_hooks=[(f"blocks.1.{g}.hook_resid_pre", lambda g, hook: g * 0) for g in ("visual",)],
    ):
        logits = model(batch)
        below["x"].retain_grad()
        logits[:, -1].square().sum().backward()
    model.zero_grad()
    gradient = below["x"].grad
    assert not gradient[layout.mask("visual")].any()
    assert gradient[layout.mask("text")].any()


def test_two_graphs_in_flight_keep_their_rows(model):
    """Each backward meets the rows of its own forward, whatever ran in between."""
    one = model.prepare("What is it?", random_image(31, 57))
    two = model.prepare("?", random_image(57, 31))
    got = []
    with model.hooks(
        bwd_hooks=[("blocks.1.visual.hook_resid_post", lambda g, hook: got.append(g.shape[1]))]
    ):
        losses = [model(x)[0, -1].sum() for x in (one, two)]
        for loss in losses:
            loss.backward()
    model.zero_grad()
    assert got == [int(x.layout.counts("visual")[0]) for x in (one, two)]


def test_run_with_cache_gradients(model, batch):
    names = mm_lens.names("resid_post", "visual", layers=[1])
    loss, cache = model.run_with_cache(batch, names_filter=names, incl_bwd=True, return_type="loss")
    model.zero_grad()
    gradient = cache["blocks.1.visual.hook_resid_post_grad"]
    assert gradient.shape == cache["resid_post", 1, "visual"].shape
    assert gradient.abs().max() > 0
    assert loss.ndim == 0


def test_stop_at_layer_remove_batch_dim_pos_slice(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    names = mm_lens.names("resid_post", "visual")
    out, cache = model.run_with_cache(inputs, names_filter=names, stop_at_layer=2)
    assert set(cache.keys()) == {f"blocks.{i}.visual.hook_resid_post" for i in (0, 1)}
    _, full = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"))
    assert torch.equal(out, full["resid_post", 1])

    _, squeezed = model.run_with_cache(inputs, names_filter=names, remove_batch_dim=True)
    assert torch.equal(squeezed["resid_post", 1, "visual"], cache["resid_post", 1, "visual"][0])
    every = ["blocks.1.hook_resid_post", "blocks.1.visual.hook_resid_post"]
    for asked in (names, every[1], every):  # rows of a view are no positions
        with pytest.raises(mm_lens.errors.HookError, match="pos_slice takes positions"):
            model.run_with_cache(inputs, names_filter=asked, pos_slice=(2, 5))
        with pytest.raises(mm_lens.errors.HookError, match="pos_slice takes positions"):
            model.get_caching_hooks(asked, False, None, False, None, (2, 5))
    for asked in (None, every[0], lambda name: name.endswith("hook_resid_post")):
        _, sliced = model.run_with_cache(inputs, names_filter=asked, pos_slice=(2, 5))
        assert torch.equal(sliced["resid_post", 1], full["resid_post", 1][:, 2:5])
        with pytest.raises(mm_lens.InputError, match="only some positions were cached"):
            sliced["resid_post", 1, "visual"]


VISUAL = "blocks.0.visual.hook_resid_post"


def test_a_forgotten_image_raises(fresh):
    """Wherever a hook of visual tokens is attached and however the model is run."""
    calls = []
    hooks = [(VISUAL, lambda x, hook: calls.append(1))]
    forgotten = fresh.prepare("Only words.")
    for inputs in (
        forgotten,
        forgotten.input_ids.clone(),
        "Only words.",
        fresh.prepare(["a", "bc"]),
    ):
        for run in (
            lambda: fresh.run_with_hooks(inputs, fwd_hooks=hooks),  # noqa: B023
            lambda: fresh.run_with_hooks(inputs, bwd_hooks=hooks),  # noqa: B023
            lambda: fresh.run_with_cache(inputs, names_filter=VISUAL),  # noqa: B023
            lambda: fresh.run_with_cache(
                inputs,  # noqa: B023
                names_filter=mm_lens.names("resid_post", ["visual", "text"]),
            ),
        ):
            with pytest.raises(mm_lens.HookError, match=r"visual tokens.*Was the image forgotten"):
                run()
    fresh.add_hook(VISUAL, hooks[0][1])
    for run in (
        lambda: fresh(forgotten),
        lambda: fresh.generate(forgotten, max_new_tokens=2, verbose=False),
        lambda: fresh.original_model(**forgotten),
    ):
        with pytest.raises(mm_lens.HookError, match="Was the image forgotten"):
            run()
    assert not calls
    fresh(fresh.prepare("What?", random_image(9, 9)))  # and nothing is left behind
    assert calls == [1]


def test_no_image_that_is_meant_warns_once_or_not_at_all(fresh):
    """A loop over mixed data: the key is absent, text is everything, and it is said once."""
    mixed = [fresh.prepare("What?", image) for image in (random_image(9, 9), None, None)]
    names = mm_lens.names("resid_post", ["visual", "text"])

    def loop():
        for inputs in mixed:
            _, cache = fresh.run_with_cache(inputs, names_filter=names)
            there = any(".visual." in name for name in cache.keys())  # noqa: SIM118
            assert there == bool(inputs.images[0])
            text = cache["resid_post", 0, "text"].shape[1]
            assert text == int(inputs.layout.counts("text")[0])

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        loop()
    assert [str(w.message) for w in found if w.category is mm_lens.MMLensWarning] == [
        "A hook of visual tokens ran into inputs without any, and did nothing there. If this is "
        "meant, say so: with model.text_only_allowed(): …"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fresh.text_only_allowed():
            loop()
            fresh.run_with_cache("Only words.", names_filter=names)
    with pytest.raises(mm_lens.HookError, match="forgotten"):
        fresh.run_with_cache("Only words.", names_filter=names)


def test_views_that_nobody_asked_for_do_not_raise(model):
    inputs = model.prepare("Only words.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, cache = model.run_with_cache(inputs)
        model.run_with_cache(inputs, names_filter=lambda name: "resid" in name)
        full, _ = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post", "text"))
    assert cache["resid_post", 0].shape[1] == inputs.input_ids.shape[1]
    assert torch.equal(full, model(inputs))


def test_generate_calls_visual_hooks_once(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    visual, text = [], []
    with model.hooks(
        fwd_hooks=[
            ("blocks.1.visual.hook_resid_post", lambda x, hook: visual.append(x.shape[1])),
            ("blocks.1.text.hook_resid_post", lambda x, hook: text.append(x.shape[1])),
        ]
    ):
        model.generate(inputs, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    counts = {g: int(inputs.layout.counts(g)[0]) for g in ("visual", "text")}
    assert visual == [counts["visual"]]
    assert text == [counts["text"], 1, 1, 1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_compatibility_mode(family, attention):
    model = load_tiny(family, attention=attention, check=False)
    inputs = model.prepare("What is it?", random_image(31, 57))
    before = model(inputs).log_softmax(-1)
    model.enable_compatibility_mode(disable_warnings=True)
    assert torch.allclose(model(inputs).log_softmax(-1), before, atol=1e-4)
    name = "blocks.1.visual.hook_resid_post"
    mask = inputs.layout.mask("visual")
    view = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x * 2)])
    full = model.run_with_hooks(
        inputs, fwd_hooks=[("blocks.1.hook_resid_post", masked_edit(mask, lambda x: x * 2))]
    )
    assert torch.equal(view, full)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z", "visual"))
    assert cache["z", 1, "visual"].shape[1:] == (int(mask.sum()), 4, 6)


def test_deepcopy_and_state_dict(fresh):
    inputs = fresh.prepare("What is it?", random_image(31, 57))
    twin = copy.deepcopy(fresh)
    name = "blocks.1.visual.hook_resid_post"
    twin.add_hook(name, lambda x, hook: x * 0)
    assert torch.equal(fresh(inputs), fresh(inputs))
    assert not torch.equal(twin(inputs), fresh(inputs))
    assert twin.hook_dict[name].parent is twin.hook_dict["blocks.1.hook_resid_post"]
    twin.reset_hooks()

    state = {k: v.clone() for k, v in fresh.state_dict().items()}
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(0.1)
    assert not torch.equal(twin(inputs), fresh(inputs))
    fresh.load_state_dict(state)
    assert torch.equal(twin(inputs), fresh(inputs))


def test_a_copy_with_view_hooks_is_refused(fresh):
    fresh.add_hook("blocks.1.visual.hook_resid_post", lambda x, hook: x * 0)
    with pytest.raises(mm_lens.HookError, match="reset_hooks"):
        copy.deepcopy(fresh)
    fresh.reset_hooks()
    copy.deepcopy(fresh)


def test_inference_mode(model, batch):
    name = "blocks.1.visual.hook_resid_post"

    def in_place(rows, hook):
        rows[:, 3] = 0

    want = model.run_with_hooks(batch, fwd_hooks=[(name, in_place)])
    with torch.inference_mode():
        _, cache = model.run_with_cache(batch, names_filter=[name])
        got = model.run_with_hooks(batch, fwd_hooks=[(name, in_place)])
    assert torch.equal(got, want)
    assert cache[name].shape[:2] == batch.layout.valid("visual").shape


def test_a_sweep_takes_every_position_once(model, batch):
    """Code for TransformerLens says endswith("hook_resid_post") and means one point per block."""
    seen = []

    def double(x, hook):
        seen.append(hook.name)
        return x * 2

    def suffix(name):
        return name.startswith("blocks.1") and name.endswith("hook_resid_post")

    got = model.run_with_hooks(batch, fwd_hooks=[(suffix, double)])
    assert len(seen) == 1
    whole = [("blocks.1.hook_resid_post", double)]
    assert torch.equal(got, model.run_with_hooks(batch, fwd_hooks=whole))
    model.add_hook(suffix, double)
    assert torch.equal(model(batch), got)
    model.reset_hooks()
    _, cache = model.run_with_cache(batch, names_filter=lambda n: n.endswith("hook_z"))
    assert not any("visual" in name for name in cache.keys())  # noqa: SIM118


def test_interrupts_and_nested_passes_keep_layouts_apart(model):
    one = model.prepare("What is it?", random_image(31, 57))
    two = model.prepare("?", random_image(57, 31))
    name, counts = "blocks.1.visual.hook_resid_post", {}

    def interrupt(x, hook):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run_with_hooks(one, fwd_hooks=[(name, interrupt)])

    def look_at(key):
        return lambda x, hook: counts.update({key: x.shape[1]})

    def inner(x, hook):
        if "inner" in counts:
            return
        counts["inner"] = None  # this hook is on the inner pass as well
        model.run_with_hooks(two, fwd_hooks=[(name, look_at("inner"))])

    model.run_with_hooks(
        one, fwd_hooks=[("blocks.0.visual.hook_resid_pre", inner), (name, look_at("outer"))]
    )
    want = [int(x.layout.counts("visual")[0]) for x in (two, one)]
    assert [counts["inner"], counts["outer"]] == want


def test_passing_an_empty_cache_changes_nothing(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    edit = [("blocks.1.visual.hook_resid_post", lambda x, hook: x * 0)]
    want = model.run_with_hooks(inputs, fwd_hooks=edit)
    got = model.run_with_hooks(inputs, fwd_hooks=edit, past_key_values=DynamicCache())
    assert torch.equal(got, want)
    options = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False}
    calls = []
    look = [("blocks.1.visual.hook_resid_post", lambda x, hook: calls.append(x.shape[1]))]
    with model.hooks(fwd_hooks=look):
        model.hf_generate(inputs, **options)
        _, cache = model.run_with_cache(
            inputs, names_filter="blocks.1.text.hook_q", past_key_values=DynamicCache()
        )
    n = inputs.layout.counts("visual").item()
    assert calls == [n, n]
    assert cache["q", 1, "text"].shape[1] == int(inputs.layout.counts("text")[0])
    assert cache.layout.counts("visual").tolist() == [n]


def test_names_refuses_what_can_match_nothing():
    for options in ({"modality": "newline"}, {"modality": "all"}, {"layers": [-1]}):
        with pytest.raises(mm_lens.InputError):
            mm_lens.names("resid_post", **options)


def test_uninstall_gives_the_plain_bridge_back(fresh):
    inputs = fresh.prepare("What is it?", random_image(31, 57))
    want = fresh(inputs)
    fresh.add_hook("blocks.1.visual.hook_resid_post", lambda x, hook: x * 0, is_permanent=True)
    plain = fresh.uninstall()
    assert type(plain) is TransformerBridge
    assert not any(".visual." in n or ".text." in n for n in plain.hook_dict)
    assert all(type(p) is HookPoint for p in plain.hook_points())
    assert plain.hook_dict["hook_embed"] is plain.hook_dict["embed.hook_out"]
    got = plain(inputs.input_ids, **{k: v for k, v in inputs.items() if k != "input_ids"})
    assert torch.equal(got, want)


def test_a_filter_spelled_out_takes_what_it_matches(model):
    every = list(model.hook_dict)
    for taken in (
        mm_lens.names("resid_post"),
        mm_lens.names(["q", "z", "mlp_out"], modality=["visual", "text"], layers=[1, 0, 9]),
    ):
        spelled = taken.spell(model.cfg.n_layers)
        assert sorted(name for name in spelled if name in every) == sorted(filter(taken, every))
