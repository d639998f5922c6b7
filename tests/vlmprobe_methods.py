"""Our numbers beside those of vlmprobe 1.0.1 on the same weights (outside/make_vlmprobe.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import random_image
from tiny_families import build
from transformers import LlavaForConditionalGeneration

import mm_lens
from mm_lens import attribution, looking
from mm_lens.attribution import Node
from mm_lens.causal import steering_hooks
from mm_lens.causal.knockout import knockout

OUTSIDE = Path(__file__).parent / "outside"
sys.path.append(str(OUTSIDE))
import make_vlmprobe  # noqa: E402

FAMILY = "llava-1.5"
BOUND = 1e-5
THEIRS = {}
"""(method, reference): what gives both numbers."""


def theirs(name, reference):
    def enter(both):
        THEIRS[name, f"vlmprobe 1.0.1 {reference}"] = both
        return both

    return enter


class Pair:
    """Their weights in our bridge, float64 and eager; the same two inputs; their outputs."""

    def __init__(self):
        native = LlavaForConditionalGeneration.from_pretrained(OUTSIDE / "vlmprobe").double().eval()
        _, processor = build(FAMILY)
        self.model = mm_lens.load(
            hf_model=native, processor=processor, attention="eager", check=False
        )
        self.outputs = load_file(OUTSIDE / "vlmprobe" / "outputs.safetensors")
        prepared = self.model.prepare("Eh?", random_image(20, 20))
        self.corrupted, self.clean = (
            replace(prepared, tensors={**prepared.tensors, **make_vlmprobe.inputs(seed)})
            for seed in (1, 2)
        )
        self.visual = self.corrupted.layout.mask("visual")
        self.direction = torch.linspace(-1, 1, 24).double()

    @torch.no_grad()
    def change(self, hooks):
        """Of the metric under hooks."""
        score = make_vlmprobe.score
        with self.model.hooks(fwd_hooks=hooks):
            edited = score(self.model(self.corrupted))
        return edited - score(self.model(self.corrupted))


@theirs("model", "logits")
@torch.no_grad()
def logits(pair):
    return pair.model(pair.corrupted), pair.outputs["logits"]


@theirs("looking.visual_logit_lens", "lens.logit")
def lens(pair):
    want = pair.outputs["logit_lens"]
    found = looking.visual_logit_lens(
        pair.model, pair.corrupted, layers=[1, 2, 3], top_k=want.shape[-1], quantity="logits"
    )
    top, ids = found.top[:, pair.visual].double(), found.top_ids[:, pair.visual]
    return torch.zeros_like(want).scatter(-1, ids, top), want


@theirs("looking.embedding_neighbours", "lens.embed")
def embedded(pair):
    found = looking.embedding_neighbours(pair.model, pair.corrupted, layers=[0], top_k=3)
    return found.cosine[0, pair.visual], pair.outputs["embed"][0]


@theirs("looking.fit_jacobian_lens", "lens.jacobian")
def jacobian(pair):
    found = looking.fit_jacobian_lens(pair.model, pair.corrupted, layers=[1, 2], corpus="noise")
    ours = torch.stack([found.jacobians[k] for k in (0, 1)])
    return ours, torch.stack([pair.outputs[f"jacobian {k}"] for k in (0, 1)])


@theirs("looking.attention_map", "attention.profile")
def attended(pair):
    found = looking.attention_map(pair.model, pair.corrupted, key="all")
    return found[:, :, 0], pair.outputs["attention"][:, 0]


@theirs("attribution.attention_rollout", "attention.rollout")
def rollout(pair):
    found = attribution.attention_rollout(pair.model, pair.corrupted, "all")
    return found.values, pair.outputs["rollout"]


@theirs("attribution.relevance", "attention.relevance")
def relevance(pair):
    found = attribution.relevance(pair.model, pair.corrupted, make_vlmprobe.score, "all")
    return found.values, pair.outputs["relevance"]


@theirs("attribution.logit_attribution", "attention.head_logits")
def heads(pair):
    answers = mm_lens.Answers(pair.model, pair.corrupted, ["a", "b"], "a", "b", tokens=[3, 5])
    found = attribution.logit_attribution(pair.model, pair.corrupted, answers).heads[..., 0]
    want = pair.outputs["head_logits"][:, 0]
    return found, want[..., 3] - want[..., 5]


@theirs("patching", "causal.patch")
@torch.no_grad()
def patched(pair):
    _, cache = pair.model.run_with_cache(pair.clean)
    found = mm_lens.patching.get_act_patch_resid_post(
        pair.model,
        pair.corrupted,
        cache,
        make_vlmprobe.score,
        axis=["visual"],
        progress=False,
    )
    return found.effect().flatten(), pair.outputs["patch"].flatten()


@theirs("attribution.attribution_patch", "causal.attribute")
def estimated(pair):
    _, cache = pair.model.run_with_cache(pair.clean, names_filter=mm_lens.names("resid_post"))
    found = attribution.attribution_patch(
        pair.model, pair.corrupted, cache, make_vlmprobe.score, "resid_post", axis="patch"
    )
    want = pair.outputs["attribute"][:, 0, pair.visual[0]]
    return found.effect[:, :, 0, 0], want


@theirs("causal.knockout", "causal.knockout")
@torch.no_grad()
def cut(pair):
    found = []
    for layers in ([0], [1], [2], [0, 1, 2]):
        with knockout(pair.model, pair.corrupted, query="text", key="visual", layers=layers):
            found.append(make_vlmprobe.score(pair.model(pair.corrupted)))
    base = make_vlmprobe.score(pair.model(pair.corrupted))
    want = [*pair.outputs["knockout False"].flatten(), *pair.outputs["knockout True"]]
    return torch.cat(found) - base, torch.stack(want)


@theirs("causal.steering_hooks", "causal.steer")
def steered(pair):
    found = [
        pair.change(
            steering_hooks(
                pair.model, pair.corrupted, pair.direction, "visual", layers=[k], strength=0.5
            )
        )
        for k in range(3)
    ]
    return torch.cat(found), pair.outputs["steer"].flatten()


@theirs("attribution.path_patch", "causal.path")
def path(pair):
    _, cache = pair.model.run_with_cache(pair.clean, names_filter=mm_lens.names("z"))
    found = attribution.path_patch(
        pair.model,
        pair.corrupted,
        cache,
        make_vlmprobe.score,
        [Node("z", 0, 1), Node("z", 1, 3)],
        [Node("k", 2, 1)],
        axis=["visual"],
        through_mlps=True,
    )
    return found["effect"].tolist(), pair.outputs["path"].flatten()
