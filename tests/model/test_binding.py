"""TransformerLens's own tools with the image, each against a plain loop over the native model.

What a test compares is a row of the matrix in `tool_matrix`, which docs/tools.md prints.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import FAMILIES
from native_case import Case, metric
from tiny import random_image
from tool_matrix import BLIND, BY_POSITION, DOCS, MATRIX, compared, compares, table, tools
from transformer_lens import patching
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.jacobian_lens import JacobianLens
from transformer_lens.tools.analysis.jacobian_lens_decomposition import estimate_occupancy

from mm_lens import InputError
from mm_lens.model.binding import take_rows

pytestmark = [
    pytest.mark.every_family,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("no_float32_in_module"),
]


@pytest.fixture(scope="module")
def case(family, no_float32_in_module):
    return Case(family)


@pytest.fixture(scope="module")
def fast(family, no_float32_in_module):
    return Case(family, attention="sdpa")


@pytest.fixture(scope="module")
def single(family, no_float32_in_module):
    """For tools that compute in float32."""
    return Case(family, dtype=torch.float32)


@pytest.fixture(scope="module")
def clean_cache(case):
    return case.cache(case.clean)


def bound(case):
    return case.model.bound(case.corrupted, case.clean)


@compares("patching.generic_activation_patch", "patching.get_act_patch_{name}")
@torch.no_grad()
@pytest.mark.parametrize("name", BY_POSITION)
def test_patching(case, clean_cache, name):
    """Cells drawn at random; the sweep runs exactly these."""
    check_sweep(case, clean_cache, name)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in BY_POSITION if "pattern" in name])
def test_patching_patterns_under_sdpa(fast, name):
    """Patterns of the clean run are read, and put into the corrupted one: eager in one block."""
    check_sweep(fast, fast.cache(fast.clean), name)


def check_sweep(case, clean_cache, name):
    axes = BY_POSITION[name]
    n = case.corrupted.input_ids.shape[1]
    heads = case.n_kv if name.startswith(("attn_head_k", "attn_head_v")) else case.n_heads
    sizes = {"layer": case.n_layers, "pos": n, "dest_pos": n, "src_pos": n}
    generator = torch.Generator().manual_seed(0)
    cells = [
        [int(torch.randint(sizes.get(a, heads), (), generator=generator)) for a in axes]
        for _ in range(3)
    ]
    # Some that matter: what reads the image, and the image.
    image = int(case.corrupted.layout.positions("visual")[0, 3])
    cells[0][0], cells[1][0] = 1, 0
    for cell, position in ((cells[0], n - 1), (cells[1], image)):
        for axis in {"pos", "dest_pos"} & set(axes):
            cell[axes.index(axis)] = position
    if "src_pos" in axes:
        cells[0][-1] = image
    with bound(case):
        got = getattr(patching, f"get_act_patch_{name}")(
            case.model,
            case.corrupted.input_ids,
            clean_cache,
            metric,
            index_axis_names=None,
            index_df=pd.DataFrame(cells, columns=axes),
        )
    for value, index in zip(got, cells, strict=True):
        case.close(value, case.cell(name, index))
    assert (got - metric(case.logits(case.corrupted))).abs().max() > 1e-4


def test_patching_resid_mid_with_gradients_reaches_the_mlp_only(case, clean_cache):
    """TransformerLens then edits a copy, which the skip connection does not see."""
    n, block = case.corrupted.input_ids.shape[1], case.blocks[1]
    with bound(case):
        got = patching.get_act_patch_resid_mid(
            case.model,
            case.corrupted.input_ids,
            clean_cache,
            metric,
            index_axis_names=None,
            index_df=pd.DataFrame([[1, n - 1]], columns=["layer", "pos"]),
        )
    place = (block.post_attention_layernorm, "in")
    clean = case.read(case.clean, place)[0]
    mask = torch.zeros(1, n, 1, dtype=torch.bool)
    mask[:, -1] = True
    change = (*place, lambda x: torch.where(mask, clean, x))
    case.close(got[0], metric(case.logits(case.corrupted, change)))


@compares("patching.get_act_patch_{name}")
@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "attn_head_all_pos_every",
        pytest.param("attn_head_all_pos_every-sdpa", id="attn_head_all_pos_every, sdpa"),
        "block_every",
        # Every position, head and type: it takes no cells.
        pytest.param("attn_head_by_pos_every", marks=pytest.mark.slow),
    ],
)
def test_wrappers(family, case, fast, name):
    name, _, sdpa = name.partition("-")
    case = fast if sdpa else case
    n, options = case.corrupted.input_ids.shape[1], {}
    if name == "attn_head_by_pos_every":
        case = Case(family, layers=1)
    if name == "block_every":
        cells = pd.DataFrame([[0, n - 1], [1, 4]], columns=["layer", "pos"])
        options = {"index_axis_names": None, "index_df": cells}
    with bound(case):
        got = getattr(patching, f"get_act_patch_{name}")(
            case.model, case.corrupted.input_ids, case.cache(case.clean), metric, **options
        )
    if name == "block_every":
        for k, kind in enumerate(("resid_pre", "attn_out", "mlp_out")):
            for value, index in zip(got[k], cells.to_numpy().tolist(), strict=True):
                case.close(value, case.cell(kind, index))
        return
    tail = "_by_pos" if "by_pos" in name else "_all_pos"
    for k, kind in enumerate(("out", "q", "k", "v", "pattern")):
        index = ([0, 0, n - 1] if kind == "pattern" else [0, n - 1, 0]) if "by" in tail else [0, 0]
        at = (k, 0, n - 1, 0) if "by" in tail else (k, 0, 0)
        case.close(got[at], case.cell(f"attn_head_{kind}{tail}", index))


@compares(
    "patching.get_act_patch_direct_path",
    "patching.get_act_patch_direct_path_all_sources",
    "analysis.get_act_patch_direct_path",
    "analysis.get_act_patch_direct_path_all_sources",
)
@torch.no_grad()
def test_direct_paths(case, clean_cache):
    corrupted_cache = case.cache(case.corrupted)
    tokens = case.corrupted.input_ids
    with bound(case):
        arguments = (case.model, tokens, clean_cache, corrupted_cache, metric)
        got = patching.get_act_patch_direct_path(*arguments, 0, 1, verbose=False)
        every = patching.get_act_patch_direct_path_all_sources(*arguments, verbose=False)
        with pytest.raises(ValueError, match="GQA"):
            patching.get_act_patch_direct_path(*arguments, 0, 1, component="k")
    assert torch.equal(every[0, 1], got)
    assert analysis.get_act_patch_direct_path is patching.get_act_patch_direct_path
    reader = case.blocks[1]
    projection = case.blocks[0].self_attn.o_proj
    z = [case.read(x, (projection, "in"))[0] for x in (case.clean, case.corrupted)]
    d = z[0].shape[-1] // case.n_heads
    hidden = case.read(case.corrupted, (reader, "in"))[0]
    for source in range(case.n_heads):
        columns = slice(source * d, (source + 1) * d)
        delta = (z[0] - z[1])[..., columns] @ projection.weight[:, columns].T
        q = reader.self_attn.q_proj(reader.input_layernorm(hidden + delta))
        for head in range(case.n_heads):

            def change(x, head=head, q=q):
                x = x.clone()
                x[..., head * d : (head + 1) * d] = q[..., head * d : (head + 1) * d]
                return x

            want = metric(case.logits(case.corrupted, (reader.self_attn.q_proj, "out", change)))
            case.close(every[0, source, 1, head], want)
    assert case.n_layers == 2  # there are no other paths


def native_node_scores(case):
    """(clean - corrupted) · gradient of the corrupted run, at every writer."""
    places = [(case.blocks[0], "in")]
    for block in case.blocks:
        places += [(block.self_attn.o_proj, "in"), (block.mlp, "out")]
    clean = case.read(case.clean, *places)
    held = {}

    def keep(x, i):
        x = x + 0
        x.retain_grad()
        held[i] = x
        return x

    hooks = [(m, side, lambda x, i=i: keep(x, i)) for i, (m, side) in enumerate(places)]
    metric(case.logits(case.corrupted, *hooks, grad=True)).backward()
    return [((c - held[i]) * held[i].grad)[0].detach() for i, c in enumerate(clean)]


def expected_scores(case):
    contributions = native_node_scores(case)
    out = {("embed", None, None, p): x.item() for p, x in enumerate(contributions[0].sum(-1))}
    for layer in range(case.n_layers):
        z = contributions[1 + 2 * layer].unflatten(-1, (case.n_heads, -1)).sum(-1)
        mlp = contributions[2 + 2 * layer].sum(-1)
        for p in range(len(mlp)):
            out["mlp_out", layer, None, p] = mlp[p].item()
            for head in range(case.n_heads):
                out["attn_head_out", layer, head, p] = z[p, head].item()
    return out


def check_scores(case, scores):
    want = expected_scores(case)
    got = {(n.kind, n.layer, n.head, n.position): s for n, s in scores.items()}
    assert got.keys() == want.keys()
    case.close([got[k] for k in want], list(want.values()))
    assert max(map(abs, want.values())) > 1e-3


@compares("analysis.attribution_patch")
def test_attribution_patch(case):
    tokens = case.clean.input_ids, case.corrupted.input_ids
    with case.model.bound(case.clean, case.corrupted):
        check_scores(case, analysis.attribution_patch(case.model, *tokens, metric).node_scores)
        edges = analysis.EdgeAttributionConfig(granularity="edge")
        with pytest.raises(ValueError, match="GQA"):
            analysis.attribution_patch(case.model, *tokens, metric, edges)
        with pytest.raises(ValueError, match="GQA"):
            analysis.faithfulness(case.model, *tokens, metric, [])


def by_edges(case, inputs, reader, grad=False):
    """Metric of a native pass in which every reader is handed its own input, and all that was
    written.

    Writers are the embedding, heads and MLPs; readers each head's q, k and v, MLPs, and the logits:
    (kind, layer, head). `reader(key, x, written)` gives the input; x is the residual stream.
    """
    written, entering, hooks = {}, {}, []
    width = case.blocks[0].self_attn.o_proj.weight.shape[1] // case.n_heads
    columns = [slice(h * width, (h + 1) * width) for h in range(case.n_heads)]

    def enter(x, k):
        entering[k] = x
        if k == 0:
            written["embed", None, None] = x

    def project(k, kind, projection):
        heads = []
        for head, own in enumerate(columns):
            x = case.blocks[k].input_layernorm(reader((kind, k, head), entering[k], written))
            heads.append(torch.nn.functional.linear(x, projection.weight[own]))
        return torch.cat(heads, -1)

    def attend(z, k):
        weight = case.blocks[k].self_attn.o_proj.weight
        for head, own in enumerate(columns):
            written["attn_head_out", k, head] = z[..., own] @ weight[:, own].T

    for k, block in enumerate(case.blocks):
        attention = block.self_attn
        hooks.append((block, "in", lambda x, k=k: enter(x, k)))
        for kind in "qkv":
            projection = getattr(attention, f"{kind}_proj")
            assert projection.bias is None
            edit = lambda x, k=k, kind=kind, p=projection: project(k, f"{kind}_input", p)  # noqa: E731
            hooks.append((projection, "out", edit))
        hooks += [
            (attention.o_proj, "in", lambda z, k=k: attend(z, k)),
            (
                block.post_attention_layernorm,
                "in",
                lambda x, k=k: reader(("mlp_in", k, None), x, written),
            ),
            (block.mlp, "out", lambda x, k=k: written.__setitem__(("mlp_out", k, None), x)),
        ]
    last = ("logits", case.n_layers - 1, None)
    norm = case.native.model.language_model.norm
    hooks.append((norm, "in", lambda x: reader(last, x, written)))
    return metric(case.logits(inputs, *hooks, grad=grad)), written


def name_of(node):
    return node.kind, node.layer, node.head


@compares("analysis.attribution_patch", "analysis.faithfulness")
def test_edges_and_faithfulness_where_every_head_has_its_key(family, case):
    case = Case(family, kv_heads=2)
    tokens = case.clean.input_ids, case.corrupted.input_ids
    with case.model.bound(case.clean, case.corrupted):
        edges = analysis.EdgeAttributionConfig(granularity="edge")
        found = analysis.attribution_patch(case.model, *tokens, metric, edges)
        every = list(found.edge_scores)
        drawn = torch.rand(len(every), generator=torch.Generator().manual_seed(0)) < 0.5
        circuits = {
            "all": every,
            "half": [edge for edge, kept in zip(every, drawn.tolist(), strict=True) if kept],
            "none": [],
        }
        kept = {
            name: analysis.faithfulness(case.model, *tokens, metric, circuit)
            for name, circuit in circuits.items()
        }
        mean = analysis.FaithfulnessConfig(ablation="mean")
        with pytest.raises(ValueError, match="endpoint"):
            analysis.faithfulness(
                case.model, *tokens, metric, [], mean, mean_tokens=tokens[0].clone()
            )
    check_scores(case, found.node_scores)

    # Scores: what a writer changes, times the gradient at what the reader gets.
    held = {}

    def keep(key, x, written):
        held[key] = x + 0
        held[key].retain_grad()
        return held[key]

    with torch.no_grad():
        _, clean = by_edges(case, case.clean, lambda key, x, written: x)
    value, corrupted = by_edges(case, case.corrupted, keep, grad=True)
    value.backward()
    change = {key: (clean[key] - corrupted[key]).detach()[0] for key in clean}
    pairs = {(name_of(w), name_of(r)) for w, r in every}
    want = {(w, r): (change[w] * held[r].grad[0]).sum(-1) for w, r in pairs}
    case.close(
        list(found.edge_scores.values()),
        [want[name_of(w), name_of(r)][r.position] for w, r in every],
    )
    heads, layers = case.n_heads, case.n_layers
    before = [1 + k * (heads + 1) for k in range(layers + 1)]
    per_position = sum(b * 3 * heads + b + heads for b in before[:-1]) + before[-1]
    assert len(every) == per_position * len(change["embed", None, None])
    assert all(w.position == r.position for w, r in every)

    # Circuits: at every other edge the reader gets what the corrupted run wrote.
    ends = [metric(case.logits(x)) for x in (case.clean, case.corrupted)]
    recovered = {}
    for name, circuit in circuits.items():
        dropped = {}
        for writer, reader in set(every) - set(circuit):
            dropped.setdefault(name_of(reader), []).append((name_of(writer), reader.position))

        def ablate(key, x, written, dropped=dropped):
            x = x.clone()
            for writer, position in dropped.get(key, ()):
                x[:, position] -= (written[writer] - corrupted[writer].detach())[:, position]
            return x

        with torch.no_grad():
            recovered[name], _ = by_edges(case, case.clean, ablate)
        got = kept[name]
        case.close(got.full_metric, ends[0])
        case.close(got.corrupt_metric, ends[1])
        case.close(got.corrupt_metric + got.recovered * (ends[0] - ends[1]), recovered[name])
    case.close(recovered["all"], ends[0])
    case.close(recovered["none"], ends[1])
    assert min((recovered["half"] - end).abs() for end in ends) > 1e-3


@compares(
    "analysis.logit_lens",
    "analysis.logit_readout",
    "analysis.JacobianLens.readout",
    "analysis.JacobianLens.fit",
)
@torch.no_grad()
def test_lenses(single):
    model, head = single.model, single.native.lm_head
    norm = single.native.model.language_model.norm
    states = single.read(single.clean, *((block, "in") for block in single.blocks))
    last = single.read(single.clean, (single.blocks[-1], "out"))[0]
    with single.model.bound(single.clean):
        lens = analysis.logit_lens(model, single.clean.input_ids, positions=None)
    for got, state in zip(lens.values, [*states, last], strict=True):
        single.close(got, head(norm(state)))
    single.close(lens.values[-1], single.logits(single.clean))
    single.close(analysis.logit_readout(model, states[1]).values, head(norm(states[1])))
    jacobian = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5
    jacobian_lens = JacobianLens({0: jacobian}, n_prompts=1, d_model=24)
    with single.model.bound(single.clean):
        readout = jacobian_lens.readout(
            model, single.clean.input_ids, layers=[0], return_full_logits=True
        )
    single.close(readout.lens_logits[0], head(norm(states[1] @ jacobian.T))[0])
    prompts = [single.clean.text[0] * 3]
    with single.model.bound(single.clean), pytest.raises(InputError, match="placeholder"):
        JacobianLens.fit(model, prompts, corpus="images", show_progress=False)


@torch.no_grad()
@compares(
    "analysis.JacobianLens.decompose",
    "analysis.JacobianLens.coordinate_patch",
    "analysis.JacobianLens.occupancy",
    "analysis.JacobianLens.fraction_of_variance",
)
def test_jacobian_lens_of_tokens(single):
    """TransformerLens's solvers, given what the native model has: its states and unembedding."""
    jacobian = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5
    lens = JacobianLens({0: jacobian}, n_prompts=1, d_model=24)
    dictionary = single.native.lm_head.weight @ jacobian
    image, n = int(single.clean.layout.positions("visual")[0, 3]), single.clean.layout.shape[1]
    states = {
        name: single.read(inputs, (single.blocks[0], "out"))[0][0]
        for name, inputs in (("clean", single.clean), ("corrupted", single.corrupted))
    }
    assert (states["clean"] - states["corrupted"])[image].abs().max() > 1e-3
    model, k, fractions = single.model, 4, []
    with bound(single):
        for (name, state), inputs in zip(
            states.items(), (single.clean, single.corrupted), strict=True
        ):
            at = {"position": image}
            want = analysis.get_sparse_decomposition(state[image], dictionary, k)
            got = lens.decompose(model, inputs.input_ids, 0, k=k, **at)
            assert got.support.tolist() == want.support.tolist(), name
            single.close(got.coordinates, want.coordinates)
            single.close(got.reconstruction, want.reconstruction)
            edge = want.support[0].item(), want.support[1].item()
            patch = lens.coordinate_patch(model, inputs.input_ids, 0, *edge, k=k, **at)
            single.close(
                patch.patched,
                analysis.solve_coordinate_patch(state[image], dictionary, *edge, k=k).patched,
            )
            options = {"max_atoms": 3, "num_control_dictionaries": 2}
            found = lens.occupancy(model, inputs.input_ids, 0, **at, **options)
            estimate = estimate_occupancy(state[image], dictionary, **options)
            assert found.support.tolist() == estimate.support.tolist()
            single.close(found.marginal_captured_variance, estimate.marginal_captured_variance)
            for position in (image, n - 1):
                part = analysis.get_sparse_decomposition(state[position], dictionary, k)
                fractions.append(
                    part.j_space_component.square().sum() / state[position].square().sum()
                )
        both = [single.clean.input_ids, single.corrupted.input_ids]
        profile = lens.fraction_of_variance(model, both, k=k, positions=[image, n - 1])
    single.close(profile.per_position[0], torch.stack(fractions))
    with pytest.raises(InputError, match="answer blind"):
        lens.decompose(model, single.clean.input_ids, 0, position=image)


@compares("analysis.reinitialized")
def test_reinitialized_is_refused(case):
    with pytest.raises(ValueError, match="cannot reset"):
        analysis.reinitialized(case.model, 0)


@compares("analysis.direct_logit_attribution")
@torch.no_grad()
def test_direct_logit_attribution(family, case):
    model = Case(family, attention="sdpa").model
    model.enable_compatibility_mode()
    with model.bound(case.clean):
        found = analysis.direct_logit_attribution(
            model, case.clean.input_ids, torch.tensor(3), torch.tensor(5)
        )
    norm = case.native.model.language_model.norm
    places = [(case.blocks[0], "in")]
    for block in case.blocks:
        places += [(block.self_attn, "out"), (block.mlp, "out")]
    parts = case.read(case.clean, *places)
    final = case.read(case.clean, (case.blocks[-1], "out"))[0][0, -1]
    scale = (final.square().mean() + norm.variance_epsilon).rsqrt()
    head = case.native.lm_head
    direction = (head.weight[3] - head.weight[5]) * norm.weight * scale
    by_label = dict(zip(found.labels, found.attribution.flatten().tolist(), strict=True))
    names = ["embed"] + [f"{k}_{x}" for k in range(case.n_layers) for x in ("attn_out", "mlp_out")]
    for name, part in zip(names, parts, strict=True):
        case.close(by_label[name], part[0, -1] @ direction)
    bias = 0 if head.bias is None else head.bias[3] - head.bias[5]
    case.close(sum(by_label.values()), metric(case.logits(case.clean)) - bias)


@compares(
    "analysis.collect_activations",
    "analysis.run_with_intervention",
    "analysis.intervened_logits",
    "analysis.fit_das",
)
def test_interchange(single):
    model, answers = single.model, [3, 5, 7]
    both = model.prepare(["Eh", "Oh"], [random_image(8, 12, 0), random_image(8, 12, 1)])
    tokens, n = both.input_ids, both.input_ids.shape[1]
    at, hook = torch.tensor([n - 1, 6]), "blocks.0.hook_resid_post"
    native = torch.cat(
        [single.read(take_rows(both, [i]), (single.blocks[0], "out"))[0] for i in range(2)]
    ).detach()
    want = native[torch.arange(2), at]

    def task(x):
        return model(x)[:, -1, answers]

    def loop(basis):
        """Each row's activation moved to the other row's, inside the subspace."""
        out = []
        for i in range(2):

            def change(x, i=i):
                x = x.clone()
                x[0, at[i]] += (want[1 - i] - x[0, at[i]]) @ basis @ basis.T
                return x

            hooks = (single.blocks[0], "out", change)
            out.append(single.logits(take_rows(both, [i]), hooks)[0, -1, answers])
        return torch.stack(out)

    basis = analysis.random_basis(24, 3, seed=0)
    step = analysis.SubspaceInterchange(basis)
    with model.bound(both):
        got = analysis.collect_activations(model, hook, tokens, task, positions=at, batch_size=1)
        single.close(got, want)
        source, options = got.flip(0), {"positions": at}
        run = analysis.run_with_intervention(model, hook, step, tokens, source, task, **options)
        many = analysis.intervened_logits(
            model, hook, step, tokens, source, task, batch_size=1, **options
        )
    single.close(run.detach(), loop(basis))
    single.close(many, loop(basis))
    found = analysis.fit_das(
        model,
        hook,
        torch.tensor([0, 1]),
        torch.tensor([1, 0]),
        torch.tensor([2, 0]),
        lambda i: model(take_rows(both, i))[:, -1, answers],
        rank=2,
        base_positions=at,
        source_positions=at.flip(0),
        epochs=1,
        lr=0.0,
    )
    first = loop(found.subspace.basis.detach())
    loss = torch.nn.functional.cross_entropy(first, torch.tensor([2, 0]))
    assert found.losses[0] == pytest.approx(loss.item(), abs=1e-6 * single.scale)


def test_bare_calls_fail_which_is_why_binding_exists(case, clean_cache):
    """TransformerLens hands on tokens alone: the model would answer without the image."""
    tokens = case.corrupted.input_ids
    for call in (
        lambda: patching.get_act_patch_resid_pre(case.model, tokens, clean_cache, metric),
        lambda: analysis.logit_lens(case.model, tokens),
        lambda: analysis.attribution_patch(case.model, tokens, tokens, metric),
    ):
        with pytest.raises(InputError, match="answer blind"):
            call()


def test_what_does_not_fit_is_refused(case, clean_cache):
    model, tokens = case.model, case.corrupted.input_ids
    longer = model.prepare("Ehm", random_image(8, 12))
    turned = model.prepare("Eh", random_image(40, 11))
    with pytest.raises(InputError, match="different layouts"), model.bound(case.clean, longer):
        pass
    sweep = patching.get_act_patch_resid_pre
    with model.bound(longer), pytest.raises(InputError, match=r"same things|another layout"):
        sweep(model, longer.input_ids, clean_cache, metric)
    if turned.layout.shape != case.clean.layout.shape:  # the family's tokens follow the shape
        with pytest.raises(InputError, match="different layouts"), model.bound(case.clean, turned):
            pass
    with bound(case), pytest.raises(InputError, match="which of them"):
        model(tokens.clone())  # equal in both


def test_same_number_of_tokens_but_another_layout_is_refused(case):
    """Text of another length before and after: positions fit in number, not in meaning."""
    model = case.model
    token = getattr(model.processor, "image_token", "<image>")
    if model.family.__class__.__name__.startswith("Omni"):
        pytest.skip("the image's place is fixed")
    a, b = (
        model.prepare(text, random_image(8, 12), chat_template=False)
        for text in (f"x{token}yz", f"xy{token}z")
    )
    assert a.input_ids.shape == b.input_ids.shape
    _, cache = model.run_with_cache(a)
    _, own = model.run_with_cache(b)
    values = cache["z", 0]
    with model.bound(b):
        for call in (
            lambda: patching.get_act_patch_resid_pre(model, b.input_ids, cache, metric),
            lambda: analysis.get_act_patch_direct_path(
                model, b.input_ids, cache, own, metric, 0, 1, verbose=False
            ),
            lambda: analysis.get_act_patch_direct_path_all_sources(
                model, b.input_ids, cache, own, metric, verbose=False
            ),
            lambda: analysis.get_act_patch_direct_path(  # run here, on inputs of its own
                model, b.input_ids, model.run_with_cache(a)[1], own, metric, 0, 1, verbose=False
            ),
        ):
            with pytest.raises(InputError, match=r"another layout.*position \d.*text before"):
                call()
        assert own["z", 0].shape == values.shape
        # Rows, copies and pieces of the bound inputs are not other inputs.
        _, twice = model.run_with_cache(b.input_ids.repeat(2, 1))
        assert twice["z", 0].shape[0] == 2
    assert torch.equal(cache["z", 0], values)  # outside everything is read


def test_matrix_is_complete_and_in_the_docs(request):
    rows = [tool for names in MATRIX for tool in names.split(", ")]
    assert set(rows) == tools()
    assert len(rows) == len(tools())
    ran = [item for item in request.session.items if item.path == Path(__file__)]
    names = {name for name in globals() if name.startswith("test_")}
    chosen = request.config.option.markexpr or request.config.option.keyword
    if names <= {item.originalname for item in ran} and not chosen:  # all of this file
        tested = {pair for item in ran for pair in compared(item)}
        for row, (_, claimed, *_) in MATRIX.items():
            for tool in row.split(", ") if claimed != BLIND else ():
                assert {(tool, family) for family in FAMILIES} <= tested, f"{tool} has no test"
    assert table() in DOCS.read_text("utf-8")


def test_text_alone_is_patched_by_position(model):
    """As in TransformerLens: a special token is a token like others; padding is not."""
    clean = model.to_tokens("What?", prepend_bos=True)
    corrupted = clean.clone()
    corrupted[0, 2] = model.tokenizer.eos_token_id
    with torch.no_grad():
        want, other = (model(x)[0, -1, 5] for x in (clean, corrupted))
    _, cache = model.run_with_cache(clean)
    found = patching.get_act_patch_resid_pre(
        model, corrupted, cache, lambda logits: logits[0, -1, 5]
    )
    assert abs(want - other) > 1e-3
    torch.testing.assert_close(found[0, 2], want)
    torch.testing.assert_close(found[0, 1], other)
    left, right = (model.prepare(["What?", "Why"], padding_side=s) for s in ("left", "right"))
    name = "blocks.1.hook_resid_pre"
    patch = partial(
        lambda x, hook, clean_activation: clean_activation,
        clean_activation=model.run_with_cache(left)[1][name],
    )
    assert torch.equal(model.run_with_hooks(left, fwd_hooks=[(name, patch)]), model(left))
    with pytest.raises(InputError, match="another layout"):
        model.run_with_hooks(right, fwd_hooks=[(name, patch)])
