"""Each method beside numbers that are not ours, and how the table is printed into docs/tools.md.

``python tests/outside_methods.py`` runs tests/outside and prints what came out. The references run
the native model: captum and scikit-learn where they have the method, plain loops where not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attribution_cases import metric
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from conftest import FAMILIES
from native_writing import block_edited, edges_cut, native_greedy
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from tiny import random_image
from transformer_lens.utilities.statistics import derive_generator

import mm_lens
from mm_lens import attribution, looking
from mm_lens.causal import ablation_hooks, principal_directions, steering_hooks
from mm_lens.causal.knockout import knockout
from mm_lens.looking.probes import fit_probe

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
    for key in METHODS:
        measured = found.get(key, {})
        shown = f"{max(measured.values()):.0e}" if measured else "not run"
        named = ", ".join(family for family in FAMILIES if family in measured)
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
