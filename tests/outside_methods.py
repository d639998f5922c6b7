"""Each method beside numbers that are not ours, and how the table is printed into docs/tools.md.

``python tests/outside_methods.py`` runs tests/outside and prints what came out. The references run
the native model: captum and scikit-learn where they have the method, plain loops where not.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_cases import metric
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from conftest import FAMILIES
from native_writing import block_edited, edges_cut, native_greedy
from safetensors.torch import load_file
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from tiny import random_image
from transformer_lens.utilities.statistics import derive_generator

import mm_lens
from mm_lens import attribution, looking
from mm_lens.causal import (
    ablation_hooks,
    ablation_table,
    knockout_table,
    principal_directions,
    steering_hooks,
    write_without,
)
from mm_lens.causal.knockout import knockout
from mm_lens.dictionaries import feature_table, feature_values, load_coder, splice_hooks
from mm_lens.heads import (
    copying_scores,
    find_sinks,
    head_scores,
    redistribution_hooks,
    relative_attention,
    reweighting_hooks,
)
from mm_lens.looking.probes import fit_probe, probe_table

DOCS = Path(__file__).parents[1] / "docs" / "tools.md"
BEGIN, END = "<!-- methods -->\n", "<!-- end of methods -->"
BOUND = 1e-5
"""Of a difference over the largest value: float64, but for norms and softmax, which the models
round to float32."""

METHODS = {}
"""(method, reference): what gives both numbers of a case."""


def method(name, reference):
    def enter(both):
        METHODS[name, reference] = both
        return both

    return enter


@method("attribution.gradient_input", "captum InputXGradient")
def gradient_input(case):
    states, _ = case.run(case.one)
    base = case.baseline(case.one, states)
    gradient = InputXGradient(case.forward(case.one)).attribute(states) / states
    want = (gradient * (states - base)).sum(-1)
    mask = case.one.layout.mask("visual")
    return attribution.gradient_input(case.model, case.one, metric).values[mask], want[mask]


@method("attribution.integrated_gradients", "captum IntegratedGradients")
def integrated(case):
    states, _ = case.run(case.one)
    want = IntegratedGradients(case.forward(case.one)).attribute(
        states,
        case.baseline(case.one, states),
        n_steps=6,
        method="gausslegendre",
        internal_batch_size=1,
    )
    mask = case.one.layout.mask("visual")
    got = attribution.integrated_gradients(case.model, case.one, metric, steps=6).values
    return got[mask], want.sum(-1)[mask]


@method("attribution.smooth_grad", "captum Saliency, mean over noise")
def smooth(case):
    states, _ = case.run(case.one)
    mask = case.one.layout.mask("visual")
    generator, total = derive_generator(0, "smooth_grad"), torch.zeros_like(states)
    for _ in range(2):
        drawn = torch.randn(states.shape, generator=generator).double()
        moved = torch.where(
            mask[..., None], states + 0.1 * states[mask].float().std() * drawn, states
        )
        total += Saliency(case.forward(case.one)).attribute(moved, abs=False) / 2
    want = (total * (states - case.baseline(case.one, states))).sum(-1)
    got = attribution.smooth_grad(case.model, case.one, metric, n=2).values
    return got[mask], want[mask]


class FromChannels(torch.nn.Module):
    """The image tokens that enter a block as [batch, channel, token], as Grad-CAM has them."""

    def __init__(self, case, inputs, layer):
        super().__init__()
        self.enter, self.case, self.inputs, self.layer = torch.nn.Identity(), case, inputs, layer

    def forward(self, channels):
        rows, mask = self.enter(channels).transpose(1, 2), self.inputs.layout.mask("visual")

        def change(own):
            out = own.clone()
            out[mask] = rows[0]
            return out

        return metric(self.case.run(self.inputs, self.layer, change)[1].logits)


@method("attribution.grad_cam", "captum LayerGradCam")
def grad_cam(case):
    mask = case.one.layout.mask("visual")
    states, _ = case.run(case.one, 2)
    net = FromChannels(case, case.one, 2)
    want = LayerGradCam(net, net.enter).attribute(states[mask].T[None], relu_attributions=True)
    return attribution.grad_cam(case.model, case.one, metric).values[mask], want[0, 0]


@method("attribution.attention_rollout", "loop over native attention")
def rollout(case):
    with torch.no_grad():
        _, out = case.run(case.one, output_attentions=True)
    size = case.one.layout.shape[1]
    total = torch.eye(size).double()
    for attention in out.attentions:
        step = 0.5 * attention[0].mean(0) + 0.5 * torch.eye(size)
        total = (step / step.sum(1, keepdim=True)) @ total
    got = attribution.attention_rollout(case.model, case.one, "all").values[0]
    return got, total[-1]


@method("attribution.relevance", "loop over native attention and its gradient")
def relevance(case):
    _, out = case.run(case.one, output_attentions=True)
    gradients = torch.autograd.grad(metric(out.logits).sum(), out.attentions)
    total = torch.eye(case.one.layout.shape[1]).double()
    for attention, gradient in zip(out.attentions, gradients, strict=True):
        total = total + (gradient[0] * attention[0]).clamp(min=0).mean(0) @ total
    return attribution.relevance(case.model, case.one, metric, "all").values[0], total[-1]


@method("attribution.attention_attribution", "native logits, block without attention")
def attended(case):
    options = {"layer": 1, "steps": 12}
    found = attribution.attention_attribution(case.model, case.one, metric, "all", **options)
    with torch.no_grad():
        whole = metric(case.run(case.one)[1].logits)
        handle = case.layers[1].self_attn.o_proj.register_forward_pre_hook(
            lambda m, args: (torch.zeros_like(args[0]),)
        )
        want = whole - metric(case.run(case.one)[1].logits)
    handle.remove()
    return found.values.double().nansum(1), want


@method("attribution.logit_attribution", "native logits; parts add up")
def logits(case):
    answers = mm_lens.Answers(case.model, case.one, ["a", "b"], "a", "b", tokens=[3, 5])
    with torch.no_grad():
        want = metric(case.run(case.one)[1].logits)
    return attribution.logit_attribution(case.model, case.one, answers).components.sum(0), want


@method("attribution.attribution_patch", "autograd of the native model")
def swaps(case):
    clean = case.model.prepare("Eh?", random_image(12, 12, 9))
    _, cache = case.model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))
    there, _ = case.run(clean, 1)
    held = []

    def change(own):
        held.append(own.detach().clone().requires_grad_(True))
        return held[0]

    _, out = case.run(case.one, 1, change)
    (gradient,) = torch.autograd.grad(metric(out.logits).sum(), held)
    mask = case.one.layout.mask("visual")
    want = ((there - held[0]) * gradient)[mask].sum().detach()
    got = attribution.attribution_patch(
        case.model, case.one, cache, metric, axis=["visual"], layers=[1]
    )
    return got.effect.flatten(), want[None]


def of_pixels(case):
    """From the pixels to the metric, natively."""

    def run(pixels):
        given = {**case.one.native, "pixel_values": pixels}
        where = (case.one["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return metric(case.native(**given, position_ids=where).logits)

    return run


@method("attribution.pixel_attribution", "captum IntegratedGradients")
def of_each_pixel(case):
    pixels = case.one["pixel_values"].double()
    want = IntegratedGradients(lambda x: of_pixels(case)(x).sum()[None]).attribute(
        pixels,
        pixels.mean().expand_as(pixels),
        n_steps=4,
        method="gausslegendre",
        internal_batch_size=len(pixels),
    )
    got = attribution.pixel_attribution(case.model, case.one, metric, "integrated", steps=4)
    return got.pixels["pixel_values"], want


@method("attribution.tower_grad_cam", "autograd of the native tower")
def in_the_tower(case):
    tower = case.native.model.vision_tower
    layer, held = getattr(tower, "vision_model", tower).encoder.layers[-2], []
    hook = layer.register_forward_hook(
        lambda m, args, out: held.append(out[0] if isinstance(out, tuple) else out)
    )
    value = of_pixels(case)(case.one["pixel_values"].double().requires_grad_(True)).sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(value, held[0])
    weight = gradient[:, 1:].mean(1, keepdim=True)  # of the patches: the first is no patch
    want = (weight * held[0][:, 1:]).sum(-1).relu()
    return attribution.tower_grad_cam(case.model, case.one, metric)[0], want


@method("attribution.deletion_insertion", "native model, tokens at their mean")
@torch.no_grad()
def deleted(case):
    mask, steps = case.one.layout.mask("visual"), 2
    values = torch.linspace(-1, 1, mask.shape[1]).sin()[None]
    found = attribution.deletion_insertion(
        case.model, case.one, metric, {"mine": values}, steps=steps, random_orders=1
    )
    states, _ = case.run(case.one)
    empty, order = case.baseline(case.one, states), values[0].masked_fill(~mask[0], -9).argsort()
    want = []
    for step in range(steps + 1):
        out = torch.zeros_like(mask)
        out[0, order.flip(0)[: round(step / steps * int(mask.sum()))]] = True

        def change(own, out=out):
            return torch.where(out[..., None], empty, own)

        want.append(metric(case.run(case.one, 0, change)[1].logits))
    mine = found.curves.query("map == 'mine' and curve == 'deletion'").sort_values("share")
    return mine["value"].to_numpy(), torch.cat(want)


def alone(case):
    """The one sample of a table, with its metric."""
    return [(case.one, {"metric": metric})]


QUIET = {"progress": False}


@method("causal.knockout_table", "native model, 4-D mask edited")
@torch.no_grad()
def tabled_cuts(case):
    table = knockout_table(case.model, alone(case), [("visual", "text")], **QUIET)
    layout, want = case.one.layout, []
    edges = layout.mask("text")[:, :, None] & layout.mask("visual")[:, None]
    for k in range(len(case.layers)):
        with edges_cut(case.native, edges, [k]):
            want.append(metric(case.run(case.one)[1].logits))
    return table["value"].to_numpy(), torch.cat(want)


@method("causal.ablation_table", "native model, forward hooks")
@torch.no_grad()
def tabled_zeros(case):
    table = ablation_table(case.model, alone(case), ["visual"], **QUIET)
    mask, want = case.one.layout.mask("visual")[..., None], []
    for k in range(len(case.layers)):
        with block_edited(case.native, k, lambda x: x.masked_fill(mask, 0)):
            want.append(metric(case.run(case.one)[1].logits))
    return table["value"].to_numpy(), torch.cat(want)


@method("causal.knockout", "native model, 4-D mask edited")
@torch.no_grad()
def knocked_out(case):
    mask = case.one.layout.mask("visual")
    edges = case.one.layout.mask("text")[:, :, None] & mask[:, None]
    with edges_cut(case.native, edges, [0, 2]):
        want = case.run(case.one)[1].logits
    with knockout(case.model, case.one, query="text", key="visual", layers=[0, 2]):
        return case.model(case.one), want


def written(case, under, within):
    """Logits of three tokens: ours with the cache, the native loop's without."""
    _, want = native_greedy(case.native, case.inputs, 3, under)
    options = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False, "verbose": False}
    never = [*range(90, case.model.cfg.d_vocab)]
    with within:
        found = case.model.generate(
            case.inputs, output_logits=True, suppress_tokens=never, **options
        )
    return torch.stack(found.logits, 1), want


@method("causal.knockout, in generate", "native greedy loop without a cache")
def knocked_out_writing(case):
    layout = case.inputs.layout

    def under(total):
        more = total - layout.shape[1]
        queries = torch.nn.functional.pad(layout.mask("text"), (0, more), value=True)
        keys = torch.nn.functional.pad(layout.mask("visual"), (0, more), value=False)
        return edges_cut(case.native, queries[:, :, None] & keys[:, None], [0, 1, 2])

    return written(case, under, knockout(case.model, case.inputs, query="text", key="visual"))


def edited(case, hooks, change, group):
    mask = case.inputs.layout.mask(group)

    def edit(states):
        more = states.shape[1] - mask.shape[1]
        here = torch.nn.functional.pad(mask, (0, more), value=group == "text")
        return torch.where(here[..., None], change(states), states)

    def under(total):
        return block_edited(case.native, 1, edit)

    return written(case, under, case.model.hooks(fwd_hooks=hooks))


@method("causal.write_without", "native greedy loop without a cache")
def rewritten(case):
    layout, blocks = case.inputs.layout, range(len(case.layers))

    def under(total):
        keys = torch.nn.functional.pad(layout.mask("visual"), (0, total - layout.shape[1]))
        own = torch.eye(total, dtype=torch.bool)
        return edges_cut(case.native, keys[:, None] & ~own, blocks)

    want = [native_greedy(case.native, case.inputs, 3, x)[0] for x in (None, under)]
    found = write_without(
        case.model,
        case.inputs,
        max_new_tokens=3,
        stop_at_eos=False,
        suppress_tokens=[*range(90, case.model.cfg.d_vocab)],
    )
    return torch.stack([found.plain_tokens, found.tokens]), torch.stack(want)


@method("causal.ablation_hooks, in generate", "native greedy loop, forward hooks")
def ablated_writing(case):
    hooks = ablation_hooks(case.model, case.inputs, "visual", layers=[1])
    return edited(case, hooks, torch.zeros_like, "visual")


@method("causal.steering_hooks, in generate", "native greedy loop, forward hooks")
def steered_writing(case):
    vector = torch.linspace(-1, 1, case.model.cfg.d_model).double()
    hooks = steering_hooks(case.model, case.inputs, vector, "text", layers=[1], strength=0.5)
    return edited(case, hooks, lambda x: x + 0.5 * vector, "text")


@method("causal.principal_directions", "scikit-learn PCA")
def principal(case):
    states, _ = case.run(case.one, 1)
    want = PCA(2).fit(states.detach()[case.one.layout.mask("visual")].numpy()).components_
    options = {"layers": [1], "hook": "resid_pre", "n": 2}
    got = principal_directions(case.model, [case.one], "visual", **options)[1].double()
    signs = np.sign((want * got.numpy()).sum(1, keepdims=True))
    return got, torch.tensor(want * signs)


@method("looking.fit_probe", "scikit-learn RidgeClassifier")
def probed(case):
    states, _ = case.run(case.one, 1)
    states = states.detach()[0]
    labels = ["image" if here else "text" for here in case.one.layout.mask("visual")[0].tolist()]
    want = RidgeClassifier(alpha=1.0).fit(states.numpy(), labels).coef_.reshape(-1)
    return fit_probe(states, labels).weights[1], torch.tensor(want)


@method("looking.probe_table", "scikit-learn RidgeClassifier, held out")
def held_out(case):
    pictures = [random_image(12, 12, k).point(lambda v, k=k: v >> 2 * (k % 2)) for k in range(6)]
    labels = ["light", "dark"] * 3
    samples = [(case.model.prepare(["Eh?"] * 6, pictures), labels)]
    options = {"layers": [1], "hook": "resid_pre", "folds": 2, "controls": 1}
    table = probe_table(case.model, samples, ["visual"], **options)
    (inputs, _), fold = samples[0], torch.randperm(6, generator=derive_generator(0, "folds")) % 2
    mask = inputs.layout.mask("visual")
    states = case.run(inputs, 1)[0]
    x = torch.stack([one[here].mean(0) for one, here in zip(states, mask, strict=True)]).numpy()
    right, y = np.zeros(6), np.array(labels)
    for k in range(2):
        out = (fold == k).numpy()
        right[out] = RidgeClassifier(alpha=1.0).fit(x[~out], y[~out]).predict(x[out]) == y[out]
    return table[["accuracy"]].to_numpy(), right.mean()[None, None]


@method("looking.visual_logit_lens", "native norm and unembedding")
@torch.no_grad()
def lens(case):
    states, _ = case.run(case.one, 2)
    read = case.native.lm_head(case.native.model.language_model.norm(states)).topk(3)
    mask = case.one.layout.mask("visual")
    got = looking.visual_logit_lens(case.model, case.one, layers=[2], top_k=3, quantity="logits")
    return got.top[0][mask], read.values[mask]


@method("looking.attention_map", "native attention")
@torch.no_grad()
def looked(case):
    _, out = case.run(case.one, output_attentions=True)
    mask = case.one.layout.mask("visual")[0]
    got = looking.attention_map(case.model, case.one)[:, :, 0, mask]
    return got, torch.stack([x[0, :, -1, mask] for x in out.attentions])


@method("looking.read_written", "native generate, output_attentions")
def read(case):
    never = [*range(90, case.model.cfg.d_vocab)]
    options = {"max_new_tokens": 2, "suppress_tokens": never}
    want = case.native.generate(
        **case.inputs.native,
        **options,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    n = case.inputs.input_ids.shape[1]
    found = [torch.stack([x[:, :, -1].mean(1)[:, :n] for x in step]) for step in want.attentions]
    got = looking.read_written(case.model, case.inputs, stop_at_eos=False, **options)
    return got.attention, torch.stack(found, 2)


@torch.no_grad()
def native_log_probs(case, states):
    """What the native model's last modules make of states."""
    read = case.native.lm_head(case.native.model.language_model.norm(states))
    return read.log_softmax(-1)


def native_tokens(case, layer, inputs=None, row=0):
    """States of image tokens, of what enters a block or leaves the last."""
    inputs = case.one if inputs is None else inputs
    held = []

    def keep(states):
        held.append(states.detach())
        return states

    with block_edited(case.native, layer - 1, keep):
        case.run(inputs)
    return held[0][row][inputs.layout.mask("visual")[row]]


@method("looking.lens_curves", "scipy entropy of native readings")
def curved(case):
    table = looking.lens_curves(case.model, case.one, ["visual"], layers=[1])
    here, end = (native_log_probs(case, native_tokens(case, k)).exp().numpy() for k in (1, 3))
    best = end.argmax(1)
    rank = (here > here[np.arange(len(here)), best][:, None]).sum(1)
    want = [entropy(here, axis=1), entropy(end, here, axis=1), rank, rank == 0]
    return table["value"].tolist(), [x.mean() for x in want]


@method("looking.fit_tuned_lens", "torch.nn.Linear fitted to native states")
def tuned(case):
    lens = looking.fit_tuned_lens(
        case.model, case.inputs, layers=[1], steps=5, penalty=0.0, held_out=0.5, batch_size=10**6
    )
    out = int(torch.randperm(2, generator=derive_generator(0, "held out"))[0])
    states = {k: native_tokens(case, k, case.inputs, 1 - out) for k in (1, 3)}
    net = torch.nn.Linear(states[1].shape[1], states[1].shape[1]).double()
    torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    plan = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / 5)
    norm, head = case.native.model.language_model.norm, case.native.lm_head
    for _ in range(5):
        said = head(norm(states[1] + net(states[1]))).log_softmax(-1)
        end = native_log_probs(case, states[3])
        loss = torch.nn.functional.kl_div(said, end, log_target=True, reduction="batchmean")
        adam.zero_grad()
        loss.backward()
        adam.step()
        plan.step()
    return lens.weights[0], net.weight


@method("looking.fit_jacobian_lens", "autograd of the native model")
def jacobian(case):
    lens = looking.fit_jacobian_lens(case.model, case.one, layers=[1], corpus="noise")
    mask, held = case.one.layout.mask("visual")[0], {}

    def enter(own):
        held["in"] = own.detach().clone().requires_grad_(True)
        return held["in"]

    def leave(out):
        held["out"] = out
        return out

    with block_edited(case.native, len(case.layers) - 1, leave):
        case.run(case.one, 1, enter)
    want = []
    for k in range(4):
        total = held["out"][0, :-1, k].sum()
        (gradient,) = torch.autograd.grad(total, held["in"], retain_graph=True)
        want.append(gradient[0, mask].mean(0))
    return lens.jacobians[0][:4], torch.stack(want)


@method("looking.embedding_neighbours", "scikit-learn cosine_similarity")
def embedded(case):
    found = looking.embedding_neighbours(case.model, case.one, layers=[1], top_k=3)
    weight = case.native.get_input_embeddings().weight.detach().numpy()
    cosines = cosine_similarity(native_tokens(case, 1).numpy(), weight)
    want = np.sort(cosines, axis=1)[:, ::-1][:, :3].copy()
    return found.cosine[0][case.one.layout.mask("visual")], torch.tensor(want)


@method("looking.latent_lens", "scikit-learn NearestNeighbors on native states")
@torch.no_grad()
def latent(case):
    options = {"layers": [1], "dtype": torch.float32}
    index = looking.build_text_index(case.model, ["the cat is red"], **options)
    found = looking.latent_lens(case.model, case.one, index, layers=[1], top_k=2)
    text = case.model.prepare("the cat is red", None, chat_template=False)
    states = case.run(text, 1)[0][0]
    ids = text.input_ids[0].tolist()
    states = states[[k for k, i in enumerate(ids) if i not in case.model.tokenizer.all_special_ids]]
    states = states if ids[0] in case.model.tokenizer.all_special_ids else states[1:]
    near = NearestNeighbors(n_neighbors=2, metric="cosine").fit(states.numpy())
    distance, _ = near.kneighbors(native_tokens(case, 1).numpy())
    return found.cosine[0][case.one.layout.mask("visual")], torch.tensor(1 - distance)


@method("looking.patchscope", "native greedy loop, forward hooks")
def patched_in(case):
    options = {"layer": 1, "target": "cat, ?", "target_layer": 2, "new_tokens": 3}
    mask = case.one.layout.mask("base")
    got = looking.patchscope(case.model, case.one, mask, **options)["token_ids"]
    text = case.model.prepare("cat, ?", None, chat_template=False)
    states = case.run(case.one, 1)[0][mask]
    at = int((text.input_ids[0] == text.input_ids[0, -1]).nonzero()[-1])
    want = []
    for state in states:

        def put(own, state=state):
            out = own.clone()
            out[:, at] = state
            return out

        tokens, _ = native_greedy(
            case.native, text, 3, lambda total, put=put: block_edited(case.native, 1, put), 10**6
        )
        want.append(tokens[0])
    return got.tolist(), torch.stack(want)


@method("looking.head_lens", "native output projection of one head")
@torch.no_grad()
def headed(case):
    table = looking.head_lens(case.model, case.one, layers=[1], top_k=1)
    held, attention = [], case.layers[1].self_attn
    hook = attention.o_proj.register_forward_pre_hook(lambda m, a: held.append(a[0][0, -1]))
    case.run(case.one)
    hook.remove()
    n = case.model.cfg.n_heads
    want = []
    for head in range(n):
        only = torch.zeros_like(held[0]).view(n, -1)
        only[head] = held[0].view(n, -1)[head]
        wrote = attention.o_proj(only.flatten())
        want.append([wrote.norm(), native_log_probs(case, wrote).argmax()])
    got = [[row["norm"], row["token_ids"][0]] for row in table.to_dict("records")]
    return torch.tensor(got), torch.tensor(want)


SAE = Path(__file__).parent / "outside" / "sae"


@method("dictionaries.SparseCoder", "SAELens 6.54.12, its files")
def coded(case):
    given = [load_file(path) for path in sorted(SAE.glob("*/outputs.safetensors"))]
    coders = [load_coder(path) for path in sorted(SAE.iterdir())]
    features = [c.encode(x["x"]) for c, x in zip(coders, given, strict=True)]
    made = [c.decode(f, x["x"]) for c, f, x in zip(coders, features, given, strict=True)]
    got = [*map(torch.flatten, features), *map(torch.flatten, made)]
    want = [x[name].flatten() for name in ("features", "made") for x in given]
    return torch.cat(got), torch.cat(want)


def native_features(case):
    """Features of native image tokens, by the weights in a file, and what they decode to."""
    w = load_file(SAE / "jumprelu" / "sae_weights.safetensors")
    w = {name: x.double() for name, x in w.items()}
    x = native_tokens(case, 2)
    raw = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    features = raw.relu() * (raw > w["threshold"])
    return x, features, features @ w["W_dec"] + w["b_dec"]


@method("dictionaries.feature_values", "native states, products with SAELens's weights")
def fired(case):
    coder = load_coder(SAE / "jumprelu")
    got = feature_values(case.model, case.one, coder, [*range(0, 40, 4)], layer=1)
    _, features, _ = native_features(case)
    return got[:, case.one.layout.mask("visual")], features[:, [*range(0, 40, 4)]].T


@method("dictionaries.feature_table", "scikit-learn r2_score of native states")
def explained(case):
    coder = load_coder(SAE / "jumprelu")
    table = feature_table(case.model, case.one, coder, ["visual"], layer=1, least=0)
    x, features, made = native_features(case)
    want = [
        r2_score(x, made, multioutput="variance_weighted"),
        (features > 0).sum(1).double().mean(),
    ]
    got = [table.attrs[name]["visual"] for name in ("explained", "active")]
    shares = table.sort_values("feature")["share"].tolist()
    return [*got, *shares], torch.tensor([*want, *(features > 0).double().mean(0)])


@method("dictionaries.splice_hooks", "native model, forward hooks")
@torch.no_grad()
def spliced(case):
    coder = load_coder(SAE / "gated")
    coder = replace(coder, weights={k: x.double() for k, x in coder.weights.items()})
    mask = case.one.layout.mask("visual")[..., None]
    with block_edited(
        case.native, 1, lambda x: torch.where(mask, coder.decode(coder.encode(x)), x)
    ):
        want = case.run(case.one)[1].logits
    hooks = splice_hooks(case.model, case.one, coder, "visual", layer=1, error=False)
    return case.model.run_with_hooks(case.one, fwd_hooks=hooks), want


@method("heads.head_scores", "scipy on native attention")
@torch.no_grad()
def scored(case):
    _, out = case.run(case.one, output_attentions=True)
    mask = case.one.layout.mask("visual")[0]
    weights = torch.stack([x[0, :, -1, mask] for x in out.attentions]).numpy()
    spread = entropy(weights, axis=-1) / np.log(weights.shape[-1])
    got = head_scores(case.model, case.one)[["image", "entropy"]].to_numpy()
    return got, np.stack([weights.sum(-1).ravel(), spread.ravel()], 1)


@method("heads.copying_scores", "native value and output projections of one head")
@torch.no_grad()
def copied(case):
    table = copying_scores(case.model, case.one, "text", layers=[1])
    held, attention = [], case.layers[1].self_attn
    hook = attention.v_proj.register_forward_hook(lambda m, a, out: held.append(out[0]))
    case.run(case.one)
    hook.remove()
    n, words = case.model.cfg.n_heads, case.native.lm_head.out_features
    mask = case.one.layout.mask("text")[0] & (case.one.input_ids[0] < words)
    own = case.one.input_ids[0, mask][:, None]
    values = held[0][mask].view(len(own), -1, attention.head_dim)
    want = []
    for head in range(n):
        only = values.new_zeros(len(own), n, attention.head_dim)
        only[:, head] = values[:, head * values.shape[1] // n]
        found = native_log_probs(case, attention.o_proj(only.flatten(1)))
        below = (found < found.gather(1, own)).sum(1)
        want.append((below / (found.shape[1] - 1)).mean())
    return table["rank"].to_numpy(), torch.stack(want)


@method("heads.relative_attention", "native attention, two prompts")
@torch.no_grad()
def relative(case):
    neutral = case.model.prepare("All?", case.one.images[0][0])
    maps = []
    for inputs in (case.one, neutral):
        _, out = case.run(inputs, output_attentions=True)
        mask = inputs.layout.mask("visual")[0]
        maps.append(torch.stack([x[0, :, -1, mask] for x in out.attentions]))
    got = relative_attention(case.model, case.one, neutral)
    return got[:, :, 0, case.one.layout.mask("visual")[0]], maps[0] / maps[1]


@method("heads.find_sinks", "native states")
def sunk(case):
    x = native_tokens(case, 1)
    want = (x.abs() / x.square().mean(-1, keepdim=True).sqrt())[:, [2, 5]].amax(-1)
    found = find_sinks(case.model, case.one, layers=[1], dims=[2, 5])
    return found.height[0][case.one.layout.mask("visual")], want


@method("heads.redistribution_hooks", "native attention moved by hand")
@torch.no_grad()
def moved(case):
    mask, attention = case.one.layout.mask("visual"), case.layers[1].self_attn
    sinks, held = mask & (mask.cumsum(1) <= 3), []
    hook = attention.v_proj.register_forward_hook(lambda m, args, out: held.append(out[0]))
    pattern = case.run(case.one, output_attentions=True)[1].attentions[1][0, :, -1]
    hook.remove()
    taken = 0.6 * pattern[:, sinks[0]].sum(1, keepdim=True)
    rest = (mask & ~sinks)[0]
    pattern = pattern.clone()
    pattern[:, sinks[0]] *= 0.4
    pattern[:, rest] *= 1 + taken / pattern[:, rest].sum(1, keepdim=True)
    values = held[0].view(len(held[0]), -1, attention.head_dim)
    values = values.repeat_interleave(len(pattern) // values.shape[1], 1)
    z = torch.einsum("hp,phd->hd", pattern, values).flatten()

    def put(module, args):
        x = args[0].clone()
        x[0, -1] = z
        return (x,)

    hook = attention.o_proj.register_forward_pre_hook(put)
    want = case.run(case.one)[1].logits
    hook.remove()
    hooks = redistribution_hooks(case.model, case.one, sinks, layers=[1], share=0.6)
    return case.model.run_with_hooks(case.one, fwd_hooks=hooks), want


@method("heads.reweighting_hooks", "native model, bias in its 4-D mask")
@torch.no_grad()
def reweighted(case):
    edges = case.one.layout.mask("text")[:, :, None] & case.one.layout.mask("visual")[:, None]
    bias = float(np.log(3.0)) * edges[:, None]
    handle = case.layers[1].self_attn.register_forward_pre_hook(
        lambda m, args, kw: (args, {**kw, "attention_mask": kw["attention_mask"] + bias}),
        with_kwargs=True,
    )
    want = case.run(case.one)[1].logits
    handle.remove()
    hooks = reweighting_hooks(case.model, case.one, "visual", factor=3.0, query="text", layers=[1])
    return case.model.run_with_hooks(case.one, fwd_hooks=hooks), want


def difference(got, want):
    """Largest difference, over the largest value."""
    got, want = torch.as_tensor(got).double(), torch.as_tensor(want).detach().double()
    assert got.shape == want.shape
    assert want.abs().max() > 0
    return float((got - want).abs().max() / want.abs().max())


class Results:
    """A plugin of pytest: what each test measured."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        for name, value in report.user_properties if report.when == "call" else ():
            self.found.setdefault(tuple(name.split(" | ")), {})[value[0]] = value[1]


def table(found):
    """In Markdown; the larger difference of the families."""
    lines = ["| method | outside reference | largest difference | families |", "|---|---|--:|---|"]
    from vlmprobe_methods import CASES, THEIRS  # which reads files

    for key in [*METHODS, *THEIRS]:
        measured = found.get(key, {})
        shown = f"{max(measured.values()):.0e}" if measured else "not run"
        named = ", ".join(family for family in {**FAMILIES, **CASES} if family in measured)
        lines.append(f"| `{key[0]}` | {key[1]} | {shown} | {named} |")
    return "\n".join(lines)


def main():
    """Run the comparisons, and print their results into the docs."""
    results = Results()
    tests = Path(__file__).parent / "outside"
    options = ["-q", "-o", "addopts=--import-mode=importlib"]
    pytest.main([str(tests), *options], plugins=[results])
    text = DOCS.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    printed = table(results.found) + "\n"
    DOCS.write_text(text[:start] + printed + text[end:], "utf-8")
    sys.stdout.write(printed)


if __name__ == "__main__":
    main()
