"""Patching between images of different layouts, against a plain loop over the native model.

Which clean position goes where is written out here, entry by entry.
"""

from __future__ import annotations

import pytest
import torch
from native_runs import layers_of, metric, run_native
from tiny import random_image

import mm_lens
from mm_lens.causal import patching
from mm_lens.causal.patching import Box

pytestmark = [pytest.mark.every_family, pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")]
WIDE, TALL = (160, 40), (40, 160)
"""Clean and corrupted image, width and height."""
BOX = (2.0, 70.0, 33.0, 140.0)
AXIS = {
    "image": "visual",
    "text": "text",
    "box": Box(*BOX),
    "centred": Box(0, 75, 40, 110, touch="centre"),
}


@pytest.fixture(scope="module")
def pair(model):
    """(clean, corrupted)"""
    return tuple(
        model.prepare("Eh?", random_image(height, width, seed))
        for seed, (width, height) in enumerate((WIDE, TALL))
    )


def tokens(inputs, size):
    """Of each position: ("text", distance from the start or the end of the image), ("newline",
    height), or (overview or not, (x, y) of its centre), in fractions of the image."""
    layout = inputs.layout
    image = [p for p in range(layout.shape[1]) if int(layout.image[0, p]) == 0]
    ends = [p for p in image if bool(layout.newline[0, p])]
    out = []
    for p in range(layout.shape[1]):
        if p not in image:
            out.append(("text", p if p < image[0] else p - layout.shape[1]))
        elif p in ends:
            out.append(("newline", ((ends.index(p) + 0.5) / len(ends),)))
        else:
            x0, y0, x1, y1 = layout.box[0, p].tolist()
            centre = (x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1]
            out.append((int(layout.tile[0, p]) == 0, centre))
    return out


def plain_sources(pair):
    """The clean position of each corrupted one."""
    theirs, mine = tokens(pair[0], WIDE), tokens(pair[1], TALL)
    out = []
    for kind, place in mine:
        same = [p for p, token in enumerate(theirs) if token[0] == kind]
        if kind == "text":
            out.append(next(p for p in same if theirs[p][1] == place))
            continue
        apart = [sum((a - b) ** 2 for a, b in zip(place, theirs[p][1], strict=True)) for p in same]
        # Of several that are as near, the first.
        out.append(next(p for p, d in zip(same, apart, strict=True) if d < min(apart) + 1e-6))
    return out


def members(pair):
    """Positions of each region of the axis, from its definition."""
    layout = pair[1].layout
    image = layout.image[0] == 0
    x0, y0, x1, y1 = layout.box[0].unbind(-1)
    left, top, right, bottom = BOX
    shown = (x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    centred = (x >= 0) & (x < 40) & (y >= 75) & (y < 110)
    return [image, ~image, shown, centred]


def test_the_layouts_differ(pair, family):
    clean, corrupted = (inputs.layout for inputs in pair)
    if family == "llava-next":
        assert not torch.equal(clean.newline[0].nonzero(), corrupted.newline[0].nonzero())
    moved = [p for p, q in enumerate(plain_sources(pair)) if p != q]
    assert len(moved) > 5
    assert [int(mask.sum()) > 0 for mask in members(pair)] == [True] * 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["resid_pre", "mlp_out"])
def test_between_layouts(model, native, pair, name):
    """Every region and layer: equal to 1e-5 at logits of size 10."""
    clean, corrupted = pair
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(name))
    sweep = getattr(patching, f"get_act_patch_{name}")
    result = sweep(model, corrupted, cache, metric, axis=AXIS, progress=False)
    source = plain_sources(pair)
    for layer, block in enumerate(layers_of(native)):
        held = []

        def keep(value, held=held):
            held.append(value)
            return value

        hooked(block, name, keep, lambda: run_native(native, clean))
        for k, mask in enumerate(members(pair)):

            def put(value, mask=mask, held=held):
                value = value.clone()
                for p in mask.nonzero()[:, 0].tolist():
                    value[0, p] = held[0][0, source[p]]
                return value

            want = metric(hooked(block, name, put, lambda: run_native(native, corrupted)))
            assert (result.values[layer, k] - want).abs().max() < 1e-5
    assert result.effect().abs().amax((0, 2)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_heads_between_layouts(model, native, pair, name):
    """A head's rows leave the native projection as its slice of columns."""
    clean, corrupted = pair
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names(name))
    sweep = getattr(patching, f"get_act_patch_attn_head_{name}_by_pos")
    result = sweep(model, corrupted, cache, metric, axis=AXIS, layers=[1], progress=False)
    config = native.config.get_text_config()
    heads = config.num_attention_heads if name == "q" else config.num_key_value_heads
    assert result.values.shape == (1, 4, heads, 1)
    project = getattr(layers_of(native)[1].self_attn, f"{name}_proj")
    held, source = [], plain_sources(pair)
    handle = project.register_forward_hook(lambda m, args, output: held.append(output))
    run_native(native, clean)
    handle.remove()
    width = held[0].shape[-1] // heads
    for k, mask in enumerate(members(pair)):
        for head in range(heads):

            def edit(m, args, output, mask=mask, head=head):
                new, columns = output.clone(), slice(head * width, (head + 1) * width)
                for p in mask.nonzero()[:, 0].tolist():
                    new[0, p, columns] = held[0][0, source[p], columns]
                return new

            handle = project.register_forward_hook(edit)
            want = metric(run_native(native, corrupted))
            handle.remove()
            assert (result.values[0, k, head] - want).abs().max() < 1e-5
    assert result.effect().abs().max() > 1e-4


def hooked(block, name, change, run):
    """What `run` returns while `change` makes the activation of a native block another one."""
    if name == "mlp_out":
        handle = block.mlp.register_forward_hook(lambda m, args, output: change(output))
    else:

        def edit(module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = block.register_forward_pre_hook(edit, with_kwargs=True)
    try:
        return run()
    finally:
        handle.remove()
