"""Our numbers beside those of vlmprobe 1.0.1 on the same weights (outside/make_vlmprobe.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import before_transformers  # noqa: F401  torchvision, where it is
import pandas as pd
import torch
from safetensors.torch import load_file
from tiny import random_image
from tiny_families import build
from transformers import AutoModelForImageTextToText

# Here, since `no_float32_in_module` reaches the modules that are loaded before it.
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl  # noqa: F401

import mm_lens
from mm_lens import attribution, looking
from mm_lens.attribution import Node
from mm_lens.causal import difference_of_means, steering_hooks
from mm_lens.causal.knockout import knockout
from mm_lens.dictionaries import load_coder, splice_hooks
from mm_lens.heads import head_scores

OUTSIDE = Path(__file__).parent / "outside"
sys.path.append(str(OUTSIDE))
import make_vlmprobe  # noqa: E402
from make_vlmprobe import CASES  # noqa: E402

BOUND = 1e-5
SMALL = {"attribution.path_patch": 5e-5}
"""Of changes of a score by a hundredth: norms that round to float32 leave 1e-7 of the score."""
NAMED = {"llava-next": "llava-next-mistral"}
"""Family in `make_vlmprobe`: its name in `tiny_families`, where it is another."""
THEIRS = {}
"""(method, reference): what gives both numbers."""


def theirs(name, reference):
    def enter(both):
        THEIRS[name, f"vlmprobe 1.0.1 {reference}"] = both
        return both

    return enter


class Pair:
    """Their weights in our bridge, float64 and eager; the same two inputs; their outputs."""

    def __init__(self, family):
        folder, case = OUTSIDE / "vlmprobe" / family, CASES[family]
        native = AutoModelForImageTextToText.from_pretrained(folder).double().eval()
        _, processor = build(NAMED.get(family, family))
        self.model = mm_lens.load(
            hf_model=native, processor=processor, attention="eager", check=False
        )
        self.outputs = load_file(folder / "outputs.safetensors")
        prepared = self.model.prepare("Eh?", random_image(*case.picture))
        self.corrupted, self.clean = (
            replace(prepared, tensors={**prepared.tensors, **case.inputs(seed)}) for seed in (1, 2)
        )
        self.visual = self.corrupted.layout.mask("visual")

    def without_picture(self):
        prepared = self.model.prepare("Eh?", None)
        return replace(prepared, tensors={**prepared.tensors, **make_vlmprobe.text_only()})

    @torch.no_grad()
    def change(self, hooks):
        """Of the metric under hooks."""
        score = make_vlmprobe.score
        with self.model.hooks(fwd_hooks=hooks):
            edited = score(self.model(self.corrupted))
        return edited - score(self.model(self.corrupted))

    def coder(self):
        found = load_coder(OUTSIDE / "sae" / "jumprelu")
        return replace(found, weights={k: x.double() for k, x in found.weights.items()})

    def by_layer(self, name, edit):
        """Change of the metric by an edit of one hook point, in each block alone."""
        return torch.cat(
            [self.change([(f"blocks.{k}.{name}", edit)]) for k in range(self.model.cfg.n_layers)]
        )


@theirs("model", "logits")
@torch.no_grad()
def logits(pair):
    return pair.model(pair.corrupted), pair.outputs["logits"]


@theirs("looking.visual_logit_lens", "lens.logit")
def lens(pair):
    return read_all(pair, pair.outputs["logit_lens"], layers=[1, 2, 3])


def read_all(pair, want, **options):
    """Logits of every word at the image tokens."""
    found = looking.visual_logit_lens(
        pair.model, pair.corrupted, top_k=want.shape[-1], quantity="logits", **options
    )
    top, ids = found.top[:, pair.visual].to(want.dtype), found.top_ids[:, pair.visual]
    return torch.zeros_like(want).scatter(-1, ids, top), want


@theirs("looking.fit_tuned_lens", "lens.tuned, its weights")
@torch.no_grad()
def tuned(pair):
    weights, biases = (
        torch.stack([pair.outputs[f"tuned {name} {k}"] for k in (0, 1)])
        for name in ("weight", "bias")
    )
    fitted = looking.TunedLens((1, 2), "visual", weights, biases, pd.DataFrame())
    return read_all(pair, pair.outputs["tuned"], layers=[1, 2], lens=fitted)


@theirs("looking.embedding_neighbours", "lens.embed")
def embedded(pair):
    found = looking.embedding_neighbours(pair.model, pair.corrupted, layers=[0], top_k=3)
    return found.cosine[0, pair.visual], pair.outputs["embed"][0]


@theirs("looking.fit_jacobian_lens", "lens.jacobian")
def jacobian(pair):
    found = looking.fit_jacobian_lens(pair.model, pair.corrupted, layers=[1, 2], corpus="noise")
    ours = torch.stack([found.jacobians[k] for k in (0, 1)])
    return ours, torch.stack([pair.outputs[f"jacobian {k}"] for k in (0, 1)])


@theirs("looking.patchscope", "lens.patchscope")
def scoped(pair):
    prompt = pair.model.prepare(make_vlmprobe.TEXT, None, chat_template=False)
    assert prompt.input_ids[0].tolist() == make_vlmprobe.TARGET
    options = {"layer": 1, "target_layer": 2, "target": make_vlmprobe.TEXT, "new_tokens": 1}
    found = looking.patchscope(pair.model, pair.corrupted, "visual", **options)
    return found["token_ids"].str[0].tolist(), pair.outputs["patchscope"]


@theirs("looking.attention_map", "attention.profile")
def attended(pair):
    found = looking.attention_map(pair.model, pair.corrupted, key="all")
    return found[:, :, 0], pair.outputs["attention"][:, 0]


@theirs("heads.head_scores", "attention.profile, mass of the image")
def looked(pair):
    found = head_scores(pair.model, pair.corrupted)["image"]
    return found.tolist(), pair.outputs["group_mass"][..., 0].flatten()


@theirs("attn.hook_pattern", "attention.reweight")
def weighted(pair):
    text, visual = pair.corrupted.layout.mask("text"), pair.visual

    def edit(pattern, hook):
        here = (text[:, :, None] & visual[:, None])[:, None]
        new = torch.where(here, pattern * make_vlmprobe.WEIGHT, pattern)
        return new / new.sum(-1, keepdim=True)

    return pair.by_layer("attn.hook_pattern", edit), pair.outputs["reweight"].flatten()


@theirs("attn.hook_attn_scores", "attention.temperature")
def cooled(pair):
    def edit(scores, hook):
        return scores / make_vlmprobe.TEMPERATURE

    return pair.by_layer("attn.hook_attn_scores", edit), pair.outputs["temperature"].flatten()


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
    patches = pair.visual & ~pair.corrupted.layout.mask("newline")
    return found.effect[:, :, 0, 0], pair.outputs["attribute"][:, 0, patches[0]]


@theirs("attribution.attribution_patch, steps", "causal.eap_ig, of the embeddings")
def integrated(pair):
    """Theirs by trapezoids, ours by left sums: less half of the first and the last gradient."""
    names = mm_lens.names("resid_pre", layers=[0])
    _, cache = pair.model.run_with_cache(pair.clean, names_filter=names)
    found = attribution.attribution_patch(
        pair.model, pair.corrupted, cache, make_vlmprobe.score, layers=[0], axis=["all"], steps=4
    )
    first, ends, four = (
        pair.outputs[name].sum() for name in ("attribute embeddings", "eap_ig 1", "eap_ig 4")
    )
    return found.effect.sum(), four + (first - ends) / 4


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


def steers(pair, layers, strength):
    return steering_hooks(
        pair.model,
        pair.corrupted,
        make_vlmprobe.DIRECTION,
        "visual",
        layers=layers,
        strength=strength,
    )


@theirs("causal.steering_hooks", "causal.steer")
def steered(pair):
    found = [pair.change(steers(pair, [k], 0.5)) for k in range(3)]
    return torch.cat(found), pair.outputs["steer"].flatten()


@theirs("causal.steering_hooks, in generate", "causal.steer, generate")
def written(pair):
    want = pair.outputs["written"]
    options = {"max_new_tokens": want.shape[1], "do_sample": False, "return_type": "tokens"}
    with pair.model.hooks(fwd_hooks=steers(pair, [0, 1, 2], make_vlmprobe.STRENGTH)):
        found = pair.model.generate(pair.corrupted, stop_at_eos=False, verbose=False, **options)
    return found[:, pair.corrupted.input_ids.shape[1] :], want


@theirs("causal.difference_of_means", "causal.vsv")
def directed(pair):
    found = difference_of_means(
        pair.model, [pair.corrupted], [pair.without_picture()], "last", layers=[0, 1, 2]
    )
    return torch.stack([found[k] for k in range(3)]), pair.outputs["vsv"]


@theirs("attribution.path_patch", "causal.path")
def path(pair):
    _, cache = pair.model.run_with_cache(pair.clean, names_filter=mm_lens.names("z"))
    found = attribution.path_patch(
        pair.model,
        pair.corrupted,
        cache,
        make_vlmprobe.score,
        [Node("z", 0, 1), Node("z", 1, 3)],
        [Node(name, layer, head) for layer, head, name in make_vlmprobe.RECEIVERS],
        axis=["visual"],
        through_mlps=True,
    )
    want = torch.cat([pair.outputs["path k"], pair.outputs["path v"]], 1)  # sender, receiver
    return found["effect"].tolist(), want.flatten()


@theirs("dictionaries.SparseCoder", "sae.features")
@torch.no_grad()
def coded(pair):
    _, cache = pair.model.run_with_cache(pair.corrupted, names_filter=["blocks.1.hook_resid_post"])
    states = cache["resid_post", 1][pair.visual]
    return pair.coder().encode(states), pair.outputs["sae features"]


@theirs("dictionaries.splice_hooks", "sae.edit, sae.reconstruct")
def spliced(pair):
    def edit(features):
        features[:, make_vlmprobe.FEATURES] *= make_vlmprobe.SCALE
        return features

    found = [
        pair.change(
            splice_hooks(pair.model, pair.corrupted, pair.coder(), "visual", layer=1, **options)
        )
        for options in ({"edit": edit}, {"error": False})
    ]
    return torch.cat(found), torch.cat([pair.outputs[f"sae {n}"] for n in ("edit", "reconstruct")])
