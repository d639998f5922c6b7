"""Knock-out and ablation against native models: attention masks and hooks on their own modules."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from causal_cases import IMAGES, PROMPTS
from conftest import FAMILIES, load_tiny
from made_layouts import image, laid_out, token
from native_runs import metric, run_native

from mm_lens import DataError, InputError, MMLensError, MMLensWarning
from mm_lens.arguments import describe_value
from mm_lens.causal.ablation import (
    ablation_hooks,
    ablation_table,
    mean_activation,
    mean_embedding_hooks,
)
from mm_lens.causal.knockout import (
    _check_windows,
    describe_group,
    find_edges,
    group_name,
    knockout,
    knockout_table,
    name_apart,
)
from mm_lens.model.report import Finding, Report

pytestmark = pytest.mark.every_family

EDGES = {
    "llava-next": [("visual", "text after"), ("base", "last"), ("visual", "visual")],
    "omnifusion": [("image", "question"), ("image", "last"), ("image", "image")],
}


# ---- which keys, by hand ----


def drawn_pairs(edges):
    """Each query a line, each key a letter."""
    return ["".join("x" if key else "." for key in row) for row in edges]


def a_layout():
    """One word, two image tokens, two words; and padding, one image token, three words."""
    two = image(4, 8, token(0, 0, 0, 0, 0, 4, 4), token(0, 0, 1, 4, 0, 8, 4))
    one = image(4, 4, token(0, 0, 0, 0, 0, 4, 4))
    return laid_out([1, two, 2], [-1, one, 3])


def test_pairs_by_hand():
    """Whether or not a query sees the key."""
    first, second = find_edges(a_layout(), query="text", key="visual")
    assert drawn_pairs(first) == [".xx..", ".....", ".....", ".xx..", ".xx.."]
    assert drawn_pairs(second) == [".....", ".....", ".x...", ".x...", ".x..."]
    first, second = find_edges(a_layout(), query="last", key="text")
    assert drawn_pairs(first) == [".....", ".....", ".....", ".....", "x..xx"]
    assert drawn_pairs(second) == [".....", ".....", ".....", ".....", "..xxx"]
    first, _ = find_edges(a_layout(), query="text after", key="all", keep_self=True)
    assert drawn_pairs(first) == [".....", ".....", ".....", "xxx.x", "xxxx."]


def test_groups_without_a_position_are_named():
    for given in ("query", "key"):
        groups = {"query": "last", "key": "visual", given: "text before"}
        with pytest.raises(InputError) as error:
            find_edges(a_layout(), **groups)
        assert str(error.value) == (
            f"There is nothing to knock out in row 1: {given}='text before' has no position there."
        )


def test_names_of_groups_and_items():
    mask = torch.tensor([[True, False]])
    assert group_name(mask) == group_name(mask.numpy()) == "mask"
    assert group_name("visual") == "visual"
    assert describe_group("visual") == "visual"
    assert torch.equal(describe_group(mask.numpy()), mask)
    given = {"a": 1}
    assert name_apart(given, str, "edges") is given
    assert name_apart([1, 2], lambda item: f"<{item}>", "edges") == {"<1>": 1, "<2>": 2}
    with pytest.raises(InputError) as error:
        name_apart([1, 2, 1], str, "edges")
    assert str(error.value) == (
        "Two edges are called '1', and would be one row of the table. Pass a mapping from names "
        "to edges."
    )
    with pytest.raises(InputError) as error:
        name_apart("visual", str, "edges")
    assert str(error.value) == (
        "edges are a list, as ['visual'], or a mapping from names to edges."
    )


@torch.no_grad()
def test_heads_by_number(model):
    inputs = model.prepare("Eh?", IMAGES[0])
    for heads, said in (
        ([], "heads= names no head. Leave it out to take all."),
        ([0, 4], "There is no head 4: there are 4, 0 to 3 (or -4 to -1 from the end)."),
        ([-5], "There is no head -5: there are 4, 0 to 3 (or -4 to -1 from the end)."),
    ):
        options = {"key": "visual", "query": "last", "heads": heads}
        with pytest.raises(InputError) as error, knockout(model, inputs, **options):
            pass
        assert str(error.value) == said
    got = []
    for heads in ([-4], [0], [0, 1, 2, 3], None):
        with knockout(model, inputs, key="visual", query="last", heads=heads):
            got.append(model(inputs))
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[2], got[3])
    assert not torch.equal(got[0], got[2])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
def test_the_rows_of_a_table_by_hand(model):
    inputs = model.prepare("Eh?", IMAGES[0])
    options = {"window": 2, "heads": [1], "progress": False, "n_resamples": 10}
    table = knockout_table(model, [(inputs, metric)], {"e": ("visual", "last")}, **options)
    places = ["first_layer", "last_layer", "edge", "key", "query"]
    rows = [*table[places].itertuples(index=False, name=None)]
    assert rows == [(0, 1, "e", "visual", "last"), (1, 2, "e", "visual", "last")]
    for row in table.itertuples():
        layers = range(row.first_layer, row.last_layer + 1)
        with knockout(model, inputs, key="visual", query="last", layers=layers, heads=[1]):
            want = metric(model(inputs)).item()
        assert row.value == pytest.approx(want, abs=1e-5)
        assert abs(row.effect) > 1e-4


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
def test_a_table_takes_one_layer_at_a_time_unless_told(model):
    """Windows that do not overlap; and a query's own key, which goes unless it is kept."""
    inputs = model.prepare("Eh?", IMAGES[0])
    samples, own = [(inputs, metric)], {"e": ("text", "text")}
    options = {"progress": False, "n_resamples": 10}
    kept = knockout_table(model, samples, own, keep_self=True, **options)
    assert [*zip(kept.first_layer, kept.last_layer, strict=True)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(InputError, match="without any key"):  # the first word sees itself alone
        knockout_table(model, samples, own, **options)
    wide = knockout_table(model, samples, [("visual", "last")], window=3, **options)
    assert [*zip(wide.first_layer, wide.last_layer, strict=True)] == [(0, 2)]
    assert [*wide.edge] == ["visual → last"]
    far = knockout_table(model, samples, [("visual", "last")], stride=2, **options)
    assert [*far.first_layer] == [0, 2]


def test_windows_that_cut_nothing_are_named():
    """In no row, or not in all: blocks 0 and 3 show what is before, the others themselves alone."""
    layout, own = a_layout(), torch.eye(5, dtype=torch.bool).expand(2, 1, 5, 5)
    causal = own.new_ones(5, 5).tril().expand(2, 1, 5, 5)
    half = torch.cat([causal[:1], own[:1]])
    masks = {0: causal, 1: own, 2: own, 3: causal, 4: own, 5: own, 6: own, 7: half}
    edges = find_edges(layout, "last", "visual")[:, None]
    spans = [range(0, 1), range(1, 2), range(2, 4), range(1, 3), range(4, 7), range(7, 8)]
    rerun = SimpleNamespace(inputs=SimpleNamespace(layout=layout), masks=masks)
    check_windows = inspect.unwrap(_check_windows)
    with pytest.warns(MMLensWarning) as warned:
        check_windows(rerun, spans, edges, "e")
    (warning,) = warned
    assert str(warning.message) == (
        "The edge 'e' is cut in no row, or not in all, by the windows of layers 1, 1–2, 4–6, 7: "
        "the model's attention mask shows its queries none of its keys there (as a sliding window "
        "does). Where it cuts nothing the effect is 0."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_windows(rerun, [range(0, 1), range(2, 4), range(3, 9)], edges, "e")
    with pytest.raises(InputError) as error:
        check_windows(rerun, [range(1, 2), range(4, 7)], edges, "e")
    assert str(error.value).startswith(
        "There is nothing to knock out in row 0: of e, no query sees a key at any of the blocks. "
    )
    with pytest.raises(InputError, match="in row 1: of e, no query sees a key at any of the"):
        check_windows(rerun, [range(7, 8)], edges, "e")
    every = find_edges(layout, "all", "all")[:, None]
    with pytest.raises(InputError, match=r"Position 0 of row 0 would .* at block 3, so"):
        check_windows(rerun, [range(3, 4)], every, "e")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
def test_a_saved_table_is_of_its_knock_out(model, tmp_path):
    """Masks have no names in it, nor have heads."""
    inputs = model.prepare("Eh?", IMAGES[0])
    visual = inputs.layout.mask("visual")
    some = visual & (visual.cumsum(1) <= 5)
    options = {"window": 3, "save": tmp_path / "table", "progress": False, "n_resamples": 10}
    samples, edge = [(inputs, metric)], (some, "last")
    first = knockout_table(model, samples, {"e": edge}, **options)
    assert knockout_table(model, samples, {"e": edge}, **options).equals(first)
    for changed, more in (
        ((visual & ~some, "last"), {}),
        (edge, {"heads": [0, 1, 2, 3]}),
        (edge, {"keep_self": True}),
    ):
        with pytest.raises(DataError, match="holds another sweep"):
            knockout_table(model, samples, {"e": changed}, **options, **more)


def test_what_is_no_edge_is_told(model):
    samples = [(model.prepare("Eh?", IMAGES[0]), metric)]
    for edge in ("ab", ("visual",), ["visual", "last", "all"], 3):
        with pytest.raises(InputError) as error:
            inspect.unwrap(knockout_table)(model, samples, [edge])  # as without checked types
        assert str(error.value) == (
            'Edges are pairs (key, query), as [("visual", "last")]; '
            f"{describe_value(edge)} is none."
        )
    with pytest.raises(InputError) as error:
        knockout_table(model, samples, 2 * [("visual", "last")])
    assert str(error.value) == (
        "Two edges are called 'visual → last', and would be one row of the table. Pass a mapping "
        "from names to edges."
    )


def test_a_model_whose_keys_cannot_be_hidden_is_refused(model, monkeypatch):
    inputs = model.prepare("Eh?", IMAGES[0])
    spoiled = Report([Finding("error", "Keys stay seen.", "mask")], 0.0)
    monkeypatch.setattr(model, "report", spoiled)
    said = (
        "A knock-out: refused, since its numbers would be wrong on this model. Keys stay seen. "
        "Load with check=False to look at them all the same."
    )
    with pytest.raises(MMLensError) as error:
        knockout_table(model, [(inputs, metric)], [("visual", "last")])
    assert str(error.value) == said
    with (
        pytest.raises(MMLensError) as error,
        knockout(model, inputs, key="visual", query="last"),
    ):
        pass
    assert str(error.value) == said


def test_a_pass_of_another_shape_is_refused(model):
    inputs, other = model.prepare("Eh?", IMAGES[0]), model.prepare("Eh??", IMAGES[0])
    shapes = [tuple(x.input_ids.shape) for x in (inputs, other)]
    with knockout(model, inputs, key="visual", query="last"), pytest.raises(InputError) as error:
        model(other)
    assert str(error.value) == (
        "The knock-out was made for other inputs than those of this forward pass: "
        f"{shapes[0]} and {shapes[1]} [batch, pos]. Make it for the inputs that are run."
    )


# ---- against native models ----


@pytest.fixture(scope="module")
def native(family):
    model = FAMILIES[family]()[0]
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def bridge(request, family):
    return load_tiny(family, attention=request.param, check=False)


@pytest.fixture(scope="module")
def precise_native(family):
    model = FAMILIES[family]()[0].double()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def precise_bridge(request, family):
    return load_tiny(family, dtype=torch.float64, attention=request.param, check=False)


def native_knockout(native, inputs, blocked, layers, heads):
    """Add the mask's minimum to chosen entries of the native eager model's attention mask."""
    chosen = torch.zeros(native.config.text_config.num_attention_heads)
    chosen[heads] = 1
    handles = []

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"]
        low = torch.finfo(mask.dtype).min
        extra = blocked[:, None].to(mask) * chosen[:, None, None].to(mask) * low
        return args, {**kwargs, "attention_mask": (mask + extra).clamp(min=low)}

    for k in layers:
        attention = native.model.language_model.layers[k].self_attn
        handles.append(attention.register_forward_pre_hook(edit, with_kwargs=True))
    logits = run_native(native, inputs)
    for handle in handles:
        handle.remove()
    return logits


def plain_blocked(layout, inputs, source, target):
    """The definition, entry by entry."""
    last = [int(row.nonzero()[-1]) for row in inputs["attention_mask"]]
    batch, n = layout.shape
    out = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for q in range(n):
            hit = q == last[b] if target == "last" else bool(layout.mask(target)[b, q])
            for k in range(q + 1):
                out[b, q, k] = hit and bool(layout.mask(source)[b, k])
    return out


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.usefixtures("no_float32")
def test_knockout_equals_a_native_masked_model(precise_bridge, precise_native, family, side):
    """In float64, windows of layers and heads, ragged rows, both paddings.

    In float32 the two differ by rounding that depends on the processor.
    """
    inputs = precise_bridge.prepare(PROMPTS, IMAGES, padding_side=side)
    assert not inputs.attention_mask.all()
    valid = inputs.attention_mask.bool()
    whole = run_native(precise_native, inputs)[valid]
    windows = [([0, 1, 2], None), ([1], [0, 3]), ([2], None)]
    for (source, target), (layers, heads) in zip(EDGES[family], windows, strict=True):
        blocked = plain_blocked(inputs.layout, inputs, source, target)
        options = {"key": source, "query": target, "layers": layers, "heads": heads}
        with torch.no_grad(), knockout(precise_bridge, inputs, **options):
            got = precise_bridge(inputs)[valid]
        used = list(range(4)) if heads is None else heads
        want = native_knockout(precise_native, inputs, blocked, layers, used)[valid]
        assert (got - want).abs().max() <= 1e-12 * whole.abs().max()
        assert (got - whole).abs().max() > 1e-3
    with torch.no_grad():  # and nothing stays behind
        assert (precise_bridge(inputs)[valid] - whole).abs().max() <= 1e-12 * whole.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_mass_is_exactly_zero_and_the_rest_renormalised(native, family, side):
    model = load_tiny(family, attention="eager", check=False)
    inputs = model.prepare(PROMPTS, IMAGES, padding_side=side)
    source, target = EDGES[family][0]
    blocked = plain_blocked(inputs.layout, inputs, source, target)
    name = "blocks.0.attn.hook_pattern"
    _, before = model.run_with_cache(inputs, names_filter=name)
    with knockout(model, inputs, key=source, query=target, layers=[0], heads=[1]):
        _, after = model.run_with_cache(inputs, names_filter=name)
    old, new = before[name], after[name]
    assert (new[:, 1][blocked] == 0).all()
    assert (old[:, 1][blocked] > 0).any()
    rows = blocked.any(-1)
    kept = old[:, 1].double().masked_fill(blocked, 0)[rows]
    want = kept / kept.sum(-1, keepdim=True)
    assert (new[:, 1][rows] - want).abs().max() < 1e-6
    others = inputs.attention_mask.bool()[:, None] & (torch.arange(4) != 1)[None, :, None]
    assert torch.equal(old[others], new[others])


def test_refusals(bridge, family):
    inputs = bridge.prepare("Eh?", IMAGES[0])
    source, target = EDGES[family][0]
    for change, complaint in (
        ({"key": target, "query": "visual"}, "nothing to knock out"),
        ({"key": "all", "query": "all"}, "without any key"),
        ({"key": "visual", "query": "nonsense"}, "No group"),
        ({"key": "image 3"}, "key='image 3' has no position"),
        ({"query": "image 3"}, "query='image 3' has no position"),
        ({"layers": [7]}, "no layer 7"),
        ({"layers": []}, "no layer"),
        ({"layers": range(0)}, "no layer"),
        ({"heads": [4]}, "no head 4"),
        ({"heads": []}, "no head"),
    ):
        options = {"key": source, "query": target} | change
        with (
            torch.no_grad(),
            pytest.raises(InputError, match=complaint),
            knockout(bridge, inputs, **options),
        ):
            bridge(inputs)
    with knockout(bridge, inputs, key="all", query="all", keep_self=True), torch.no_grad():
        assert bridge(inputs).isfinite().all()
    other = bridge.prepare(PROMPTS, IMAGES)
    with (
        knockout(bridge, inputs, key=source, query=target),
        pytest.raises(InputError, match="made for"),
    ):
        bridge(other)


@pytest.mark.parametrize("edit", ["knockout", "ablation", "added hook", "corruption"])
def test_edits_hold_for_the_inputs_they_were_made_for(model, edit):
    """Left and right padding: one shape, other positions. Copies of the inputs are theirs."""
    left, right = (model.prepare(PROMPTS, IMAGES, padding_side=s) for s in ("left", "right"))
    assert left.input_ids.shape == right.input_ids.shape
    with torch.no_grad():
        plain = model(left)
    hooks = ablation_hooks(model, left, "last", layers=[1])
    if edit == "corruption":
        hooks = mean_embedding_hooks(left, torch.zeros(24))
    if edit == "knockout":
        under = knockout(model, left, key="visual", query="last")
    else:
        under = model.hooks(fwd_hooks=hooks)
    if edit == "added hook":
        under = contextlib.nullcontext()
        model.add_hook(*hooks[0])
    try:
        with torch.no_grad(), under:
            got = model(left)
            many = model({k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in left.items()})
            with pytest.raises(InputError, match=r"made for other inputs.*'pad'"):
                model(right)
    finally:
        model.reset_hooks()
    valid = left.attention_mask.bool()
    assert ((got - plain).abs().amax(-1) * valid).amax(1).min() > 1e-3
    assert (many - got.repeat(2, 1, 1))[valid.repeat(2, 1)].abs().max() < 1e-5


def test_table_of_windows_and_edges(model, native, family, tmp_path):
    """Each value is the native masked model's mean over samples."""
    native_inputs = [model.prepare("Eh?", image) for image in IMAGES]
    # Twice: four samples have an interval, and the mean of two.
    samples = 2 * [(inputs, {"difference": metric}) for inputs in native_inputs]
    save, edges = tmp_path / "table", EDGES[family][:2]
    options = {"window": 2, "save": save, "progress": False, "n_resamples": 50}
    table = knockout_table(model, samples, edges, batch_size=3, **options)
    assert len(table) == 2 * 2
    assert set(table["first_layer"]) == {0, 1}
    assert (table["n"] == 4).all()
    for row in table.itertuples():
        source, target = edges[list(dict.fromkeys(table["edge"])).index(row.edge)]
        layers = range(row.first_layer, row.last_layer + 1)
        want = [
            metric(
                native_knockout(
                    native, x, plain_blocked(x.layout, x, source, target), layers, [0, 1, 2, 3]
                )
            )
            for x in native_inputs
        ]
        assert abs(row.value - torch.stack(want).mean().item()) < 1e-5
        assert row.low <= row.effect <= row.high
    again = knockout_table(model, samples, edges, **options)
    assert again.equals(table)


@torch.no_grad()
def test_layers_count_from_the_end_too(model):
    inputs = model.prepare("Eh?", IMAGES[0])
    for how in ("zero", "mean"):
        got, want = (
            model.run_with_hooks(
                inputs,
                fwd_hooks=ablation_hooks(
                    model,
                    inputs,
                    "last",
                    layers=[k],
                    how=how,
                    means=mean_activation(model, [inputs], "text", layers=[k])
                    if how == "mean"
                    else None,
                ),
            )
            for k in (-1, 2)
        )
        assert torch.equal(got, want)


def test_masks_of_a_table_need_names(model):
    """Every mask would be called "mask": two of them were one row."""
    inputs = model.prepare("Eh?", IMAGES[0])
    visual = inputs.layout.mask("visual")
    first = visual & (visual.cumsum(1) <= 5)
    masks, samples = [first, visual & ~first], [(inputs, metric)]
    options = {"window": 3, "progress": False, "n_resamples": 10}
    for table, plain, named in (
        (knockout_table, [(m, "last") for m in masks], {"a": (masks[0], "last")}),
        (ablation_table, masks, {"a": masks[0]}),
    ):
        with pytest.raises(InputError, match=r"called 'mask.*mapping"):
            table(model, samples, plain, **options)
        several = {**named, "b": plain[1]}
        both = table(model, samples, several, **options)
        alone = [table(model, samples, {name: several[name]}, **options) for name in several]
        assert both["effect"].tolist() == pytest.approx(
            [float(t["effect"].iloc[0]) for t in alone], abs=1e-5
        )
        assert abs(both["effect"][0] - both["effect"][1]) > 1e-3
        assert len(table(model, samples, plain[:1], **options)) == 1
