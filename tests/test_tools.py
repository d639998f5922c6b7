"""TransformerLens's own tools with the image, each against a plain loop over the native model.

`MATRIX` is printed into docs/tools.md: ``python tests/test_tools.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import FAMILIES
from tiny import random_image, tiny_llava_next
from tiny_omnifusion import _build as omnifusion
from tiny_omnifusion import tiny_omnifusion
from transformer_lens import patching
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.jacobian_lens import JacobianLens
from transformers import MistralConfig

import mm_lens
from mm_lens import InputError
from mm_lens.binding import rows

pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = Path(__file__).parents[1] / "docs" / "tools.md"

BY_POSITION = {
    "resid_pre": ("layer", "pos"),
    "resid_mid": ("layer", "pos"),
    "attn_out": ("layer", "pos"),
    "mlp_out": ("layer", "pos"),
    "attn_head_out_by_pos": ("layer", "pos", "head"),
    "attn_head_q_by_pos": ("layer", "pos", "head"),
    "attn_head_k_by_pos": ("layer", "pos", "head"),
    "attn_head_v_by_pos": ("layer", "pos", "head"),
    "attn_head_pattern_by_pos": ("layer", "head_index", "dest_pos"),
    "attn_head_pattern_dest_src_pos": ("layer", "head_index", "dest_pos", "src_pos"),
    "attn_head_out_all_pos": ("layer", "head"),
    "attn_head_q_all_pos": ("layer", "head"),
    "attn_head_k_all_pos": ("layer", "head"),
    "attn_head_v_all_pos": ("layer", "head"),
    "attn_head_pattern_all_pos": ("layer", "head_index"),
}
EVERY = ("attn_head_all_pos_every", "attn_head_by_pos_every", "block_every")

PAIR = "`bound(corrupted, clean)`"
ONE = "`bound(inputs)`"
EQUAL = "equal"
MATRIX = {  # tool: (what to bind, result, remark)
    "patching.generic_activation_patch": (PAIR, EQUAL, "through every function below"),
    **{
        f"patching.get_act_patch_{name}": (
            PAIR,
            EQUAL,
            'needs `attention="eager"`'
            if "pattern" in name or ("head_" in name and "every" in name)
            else "",
        )
        for name in (*BY_POSITION, *EVERY)
    },
    "patching.get_act_patch_resid_mid": (
        PAIR,
        EQUAL,
        "under `torch.no_grad()`; with gradients only the MLP branch has the edit, not the skip",
    ),
    "analysis.get_act_patch_direct_path": (
        PAIR,
        EQUAL,
        'component "q"; "k" and "v" are refused by TransformerLens where heads share keys; eager',
    ),
    "analysis.get_act_patch_direct_path_all_sources": (PAIR, EQUAL, "as above"),
    "analysis.attribution_patch": (PAIR, EQUAL, "nodes; edges need eager and a key per head"),
    "analysis.faithfulness": (PAIR, EQUAL, "eager; refused where heads share keys"),
    "analysis.logit_lens": (ONE, EQUAL, ""),
    "analysis.logit_readout": ("nothing", EQUAL, "takes vectors"),
    "analysis.direct_logit_attribution": (ONE, EQUAL, "in compatibility mode, as always"),
    "analysis.JacobianLens.readout": (ONE, EQUAL, ""),
    "analysis.JacobianLens.fit": (
        "–",
        "refused",
        "takes strings, which hold no image; fit it on text",
    ),
    "analysis.collect_activations": (ONE, EQUAL, ""),
    "analysis.run_with_intervention": (ONE, EQUAL, ""),
    "analysis.intervened_logits": (ONE, EQUAL, ""),
    "analysis.fit_das": (
        "nothing",
        EQUAL,
        "draws batches: give row numbers, and `lambda i: model(mm_lens.binding.rows(inputs, i))`",
    ),
    "analysis.attention_head_subspace_affinity, projection_kernel, sparse probes, bases": (
        "nothing",
        "no forward pass",
        "weights or given activations only",
    ),
}


def table() -> str:
    """The matrix in Markdown."""
    head = ["| Tool | Bind | " + " | ".join(FAMILIES) + " | Remark |"]
    head.append("|---" * (3 + len(FAMILIES)) + "|")
    lines = [
        f"| `{tool}` | {bind} | " + " | ".join([result] * len(FAMILIES)) + f" | {remark} |"
        for tool, (bind, result, remark) in MATRIX.items()
    ]
    return "\n".join([*head, *lines])


class Case:
    """One family: bridge and native model of the same weights, clean and corrupted inputs."""

    def __init__(self, family, layers=2, kv_heads=1, attention="eager"):
        language = {
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": kv_heads,
        }
        if family == "llava-next":
            native, processor = tiny_llava_next(language=language)
            model, _ = tiny_llava_next(language=language)
        else:
            config = tiny_omnifusion()[0].config.text_config.to_dict() | language
            config.pop("head_dim", None)
            build = omnifusion.__wrapped__
            (native, processor), (model, _) = (
                build(0, (("text_config", MistralConfig(**config)),)) for _ in range(2)
            )
        native.set_attn_implementation("eager")
        self.native = native
        self.model = mm_lens.load(
            hf_model=model, processor=processor, attention=attention, check=False
        )
        self.clean, self.corrupted = (
            self.model.prepare("Eh", random_image(8, 12, seed)) for seed in (0, 1)
        )
        assert torch.equal(self.clean.input_ids, self.corrupted.input_ids)
        self.blocks = native.model.language_model.layers
        self.n_layers, self.n_heads, self.n_kv = layers, 2, kv_heads
        self.scale = self.logits(self.corrupted).abs().max().item()

    def logits(self, inputs, *hooks, grad=False, **options):
        """Native logits under (module, "in" or "out", function) hooks."""
        handles = []
        for module, side, change in hooks:
            if side == "in":

                def pre(m, args, kwargs, change=change):
                    if args:
                        new = change(args[0])
                        return None if new is None else ((new, *args[1:]), kwargs)
                    new = change(kwargs["hidden_states"])
                    return None if new is None else (args, {**kwargs, "hidden_states": new})

                handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
            else:

                def post(m, args, out, change=change):
                    whole = isinstance(out, tuple)
                    new = change(out[0] if whole else out)
                    return None if new is None else ((new, *out[1:]) if whole else new)

                handles.append(module.register_forward_hook(post))
        with torch.set_grad_enabled(grad):
            out = self.native(**inputs, **options)
        for handle in handles:
            handle.remove()
        return out if options else out.logits

    def read(self, inputs, *places):
        """What the native model has at (module, side)."""
        held = {}
        self.logits(
            inputs,
            *(
                (m, side, lambda x, i=i: held.__setitem__(i, x))
                for i, (m, side) in enumerate(places)
            ),
        )
        return [held[i] for i in range(len(places))]

    def patched(self, place, mask):
        """Metric with the clean run's values put in at a place where `mask` is set."""
        clean = self.read(self.clean, place)[0]
        change = (*place, lambda x: torch.where(mask.expand_as(x), clean, x))
        return metric(self.logits(self.corrupted, change))

    def patched_pattern(self, layer, head, mask):
        """Metric with a head's attention weights of the clean run where `mask` [dest, src]."""
        attention = self.blocks[layer].self_attn
        both = [
            self.logits(x, output_attentions=True).attentions[layer][:, head]
            for x in (self.clean, self.corrupted)
        ]
        pattern = torch.where(mask, *both)
        values = self.read(self.corrupted, (attention.v_proj, "out"))[0]
        d = values.shape[-1] // self.n_kv
        kv = head * self.n_kv // self.n_heads
        z = pattern @ values[..., kv * d : (kv + 1) * d]

        def change(x):
            x = x.clone()
            x[..., head * d : (head + 1) * d] = z
            return x

        return metric(self.logits(self.corrupted, (attention.o_proj, "in", change)))

    def cell(self, name, index):
        """The value of one cell of a sweep of `transformer_lens.patching`."""
        block = self.blocks[index[0]]
        n = self.corrupted.input_ids.shape[1]
        if "pattern" in name:
            mask = torch.zeros(n, n, dtype=torch.bool)
            dest = index[2] if len(index) > 2 else slice(None)
            mask[dest, index[3] if len(index) > 3 else slice(None)] = True
            return self.patched_pattern(index[0], index[1], mask)
        attention = block.self_attn
        if name == "resid_mid":  # TransformerLens edits in place: the skip connection has it too
            place = (block.post_attention_layernorm, "in")
            clean, own = (self.read(x, place)[0] for x in (self.clean, self.corrupted))
            change = torch.zeros_like(own)
            change[:, index[1]] = (clean - own)[:, index[1]]
            return metric(self.logits(self.corrupted, (attention, "out", lambda x: x + change)))
        kind = name.removeprefix("attn_head_").removesuffix("_by_pos").removesuffix("_all_pos")
        place = {
            "resid_pre": (block, "in"),
            "attn_out": (attention, "out"),
            "mlp_out": (block.mlp, "out"),
            "out": (attention.o_proj, "in"),
            "q": (attention.q_proj, "out"),
            "k": (attention.k_proj, "out"),
            "v": (attention.v_proj, "out"),
        }[kind]
        width = self.read(self.corrupted, place)[0].shape[-1]
        mask = torch.zeros(1, n, width, dtype=torch.bool)
        heads = {"out": self.n_heads, "q": self.n_heads, "k": self.n_kv, "v": self.n_kv}.get(kind)
        if heads is None:
            mask[:, index[1]] = True
        else:
            d = width // heads
            where = index[1] if name.endswith("by_pos") else slice(None)
            mask[:, where, index[-1] * d : (index[-1] + 1) * d] = True
        return self.patched(place, mask)

    def cache(self, inputs):
        return self.model.run_with_cache(inputs)[1]

    def close(self, got, want):
        """1e-6 of the largest logit: what float32 can tell."""
        assert (torch.as_tensor(got) - torch.as_tensor(want)).abs().max() <= 1e-6 * self.scale


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 5]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def clean_cache(case):
    return case.cache(case.clean)


def bound(case):
    return case.model.bound(case.corrupted, case.clean)


@torch.no_grad()
@pytest.mark.parametrize("name", BY_POSITION)
def test_patching(case, clean_cache, name):
    """Cells drawn at random; the sweep runs exactly these."""
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


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "attn_head_all_pos_every",
        "block_every",
        # Every position, head and type: it takes no cells.
        pytest.param("attn_head_by_pos_every", marks=pytest.mark.slow),
    ],
)
def test_wrappers(case, name, request):
    n, options = case.corrupted.input_ids.shape[1], {}
    if name == "attn_head_by_pos_every":
        case = Case(request.node.callspec.params["case"], layers=1)
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
    source, reader = case.blocks[0].self_attn, case.blocks[1]
    z = [case.read(x, (source.o_proj, "in"))[0] for x in (case.clean, case.corrupted)]
    d = z[0].shape[-1] // 2
    delta = (z[0] - z[1])[..., d:] @ source.o_proj.weight[:, d:].T
    hidden = case.read(case.corrupted, (reader, "in"))[0]
    q = reader.self_attn.q_proj(reader.input_layernorm(hidden + delta))
    for head in range(2):
        columns = slice(head * d, (head + 1) * d)

        def change(x, columns=columns):
            x = x.clone()
            x[..., columns] = q[..., columns]
            return x

        want = metric(case.logits(case.corrupted, (reader.self_attn.q_proj, "out", change)))
        case.close(got[1, head], want)


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
    size = max(map(abs, want.values()))
    assert max(abs(got[k] - want[k]) for k in want) < 1e-5 * size
    assert size > 1e-3


def test_attribution_patch(case):
    tokens = case.clean.input_ids, case.corrupted.input_ids
    with case.model.bound(case.clean, case.corrupted):
        check_scores(case, analysis.attribution_patch(case.model, *tokens, metric).node_scores)
        edges = analysis.EdgeAttributionConfig(granularity="edge")
        with pytest.raises(ValueError, match="GQA"):
            analysis.attribution_patch(case.model, *tokens, metric, edges)
        with pytest.raises(ValueError, match="GQA"):
            analysis.faithfulness(case.model, *tokens, metric, [])


def test_edges_and_faithfulness_where_every_head_has_its_key(request, case):
    """A writer's edges add up to its native score; keeping all or no edges gives both ends."""
    case = Case(request.node.callspec.params["case"], kv_heads=2)
    tokens = case.clean.input_ids, case.corrupted.input_ids
    with case.model.bound(case.clean, case.corrupted):
        edges = analysis.EdgeAttributionConfig(granularity="edge")
        found = analysis.attribution_patch(case.model, *tokens, metric, edges)
        check_scores(case, found.node_scores)
        every = list(found.edge_scores)
        whole = analysis.faithfulness(case.model, *tokens, metric, every)
        none = analysis.faithfulness(case.model, *tokens, metric, [])
    for x, inputs in (("full_metric", case.clean), ("corrupt_metric", case.corrupted)):
        case.close(getattr(whole, x), metric(case.logits(inputs)))
    assert whole.recovered == pytest.approx(1, abs=1e-4)
    assert none.recovered == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_lenses(case):
    model, head = case.model, case.native.lm_head
    norm = case.native.model.language_model.norm
    states = case.read(case.clean, *((block, "in") for block in case.blocks))
    last = case.read(case.clean, (case.blocks[-1], "out"))[0]
    with case.model.bound(case.clean):
        lens = analysis.logit_lens(model, case.clean.input_ids, positions=None)
    for got, state in zip(lens.values, [*states, last], strict=True):
        case.close(got, head(norm(state)))
    case.close(lens.values[-1], case.logits(case.clean))
    case.close(analysis.logit_readout(model, states[1]).values, head(norm(states[1])))
    jacobian = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)) / 5
    jacobian_lens = JacobianLens({0: jacobian}, n_prompts=1, d_model=24)
    with case.model.bound(case.clean):
        readout = jacobian_lens.readout(
            model, case.clean.input_ids, layers=[0], return_full_logits=True
        )
    case.close(readout.lens_logits[0], head(norm(states[1] @ jacobian.T))[0])
    prompts = [case.clean.text[0] * 3]
    with case.model.bound(case.clean), pytest.raises(InputError, match="placeholder"):
        JacobianLens.fit(model, prompts, corpus="images", show_progress=False)


@torch.no_grad()
def test_direct_logit_attribution(request, case):
    model = Case(request.node.callspec.params["case"], attention="sdpa").model
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


def test_interchange(case):
    model, answers = case.model, [3, 5, 7]
    both = model.prepare(["Eh", "Oh"], [random_image(8, 12, 0), random_image(8, 12, 1)])
    tokens, n = both.input_ids, both.input_ids.shape[1]
    at, hook = torch.tensor([n - 1, 6]), "blocks.0.hook_resid_post"
    native = torch.cat(
        [case.read(rows(both, [i]), (case.blocks[0], "out"))[0] for i in range(2)]
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

            hooks = (case.blocks[0], "out", change)
            out.append(case.logits(rows(both, [i]), hooks)[0, -1, answers])
        return torch.stack(out)

    basis = analysis.random_basis(24, 3, seed=0)
    step = analysis.SubspaceInterchange(basis)
    with model.bound(both):
        got = analysis.collect_activations(model, hook, tokens, task, positions=at, batch_size=1)
        case.close(got, want)
        source, options = got.flip(0), {"positions": at}
        run = analysis.run_with_intervention(model, hook, step, tokens, source, task, **options)
        many = analysis.intervened_logits(
            model, hook, step, tokens, source, task, batch_size=1, **options
        )
    case.close(run.detach(), loop(basis))
    case.close(many, loop(basis))
    found = analysis.fit_das(
        model,
        hook,
        torch.tensor([0, 1]),
        torch.tensor([1, 0]),
        torch.tensor([2, 0]),
        lambda i: model(rows(both, i))[:, -1, answers],
        rank=2,
        base_positions=at,
        source_positions=at.flip(0),
        epochs=1,
        lr=0.0,
    )
    first = loop(found.subspace.basis.detach())
    loss = torch.nn.functional.cross_entropy(first, torch.tensor([2, 0]))
    assert found.losses[0] == pytest.approx(loss.item(), abs=1e-6 * case.scale)


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
        twice = own["z", 0]
    assert torch.equal(cache["z", 0], values)  # outside everything is read


def test_matrix_is_complete_and_in_the_docs():
    named = " ".join(MATRIX)
    sweeps = [name for name in dir(patching) if name.startswith("get_act_patch")]
    for name in [*sweeps, "logit_lens", "attribution_patch", "faithfulness", "fit_das"]:
        assert name in named
    assert table() in DOCS.read_text("utf-8")


if __name__ == "__main__":
    text = DOCS.read_text("utf-8")
    start = text.index("| Tool |")
    end = text.index("\n\n", start)
    DOCS.write_text(text[:start] + table() + text[end:], "utf-8")
    sys.stdout.write(table() + "\n")
