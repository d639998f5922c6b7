"""The list of methods says what the tools do: each is tried on models on which it refuses."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from conftest import load_tiny
from opened_families import make_inputs, open_family
from tiny import random_image

import mm_lens
from mm_lens import MMLensError
from mm_lens.attribution import (
    Node,
    attention_attribution,
    attention_rollout,
    deletion_insertion,
    logit_attribution,
    path_patch,
    relevance,
)
from mm_lens.causal import Answers, ablation_table, knockout_table, write_without
from mm_lens.causal.knockout import knockout
from mm_lens.heads import (
    copying_scores,
    head_scores,
    redistribution_hooks,
    relative_attention,
    reweighting_hooks,
)
from mm_lens.looking import attention_map, head_lens, patchscope, read_written
from mm_lens.model.running.methods import METHODS


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def knock_out(model, inputs):
    with torch.no_grad(), knockout(model, inputs, query="last", key="visual"):
        model(inputs)


def patch(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_pre"))
    mm_lens.patching.get_act_patch_resid_pre(
        model, inputs, cache, metric, axis="modality", layers=[1], progress=False
    )


def take_apart(model, inputs):
    answers = Answers(model, inputs, ["a", "b"], "a", "b", tokens=[3, 5])
    logit_attribution(model, inputs, answers)


def send(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("mlp_out"))
    path_patch(model, inputs, cache, metric, [Node("mlp_out", 1)])


def redistribute(model, inputs):
    visual = inputs.layout.mask("visual")
    blocks = [k for k, b in enumerate(model.blocks) if getattr(b, "attn", None) is not None]
    hooks = redistribution_hooks(model, inputs, visual & (visual.cumsum(1) == 1), layers=blocks)
    with torch.no_grad():
        model.run_with_hooks(inputs, fwd_hooks=hooks)


def reweight(model, inputs):
    with torch.no_grad():
        model.run_with_hooks(inputs, fwd_hooks=reweighting_hooks(model, inputs, factor=2.0))


QUIET = {"progress": False, "n_resamples": 5, "window": 3}
TRIED = {
    "patching": patch,
    "causal.knockout.knockout": knock_out,
    "causal.knockout_table": lambda m, x: knockout_table(
        m, [(x, metric)], [("visual", "last")], **QUIET
    ),
    "causal.write_without": lambda m, x: write_without(
        m, x, max_new_tokens=1, suppress_tokens=[*range(90, m.cfg.d_vocab)]
    ),
    "causal.ablation_table": lambda m, x: ablation_table(m, [(x, metric)], ["last"], **QUIET),
    "looking.attention_map": attention_map,
    "looking.read_written": lambda m, x: read_written(m, x, max_new_tokens=1),
    "attribution.attention_rollout": attention_rollout,
    "attribution.relevance": lambda m, x: relevance(m, x, metric),
    "attribution.attention_attribution": lambda m, x: attention_attribution(
        m, x, metric, layer=-1, steps=1
    ),
    "attribution.logit_attribution": take_apart,
    "attribution.path_patch": send,
    "attribution.deletion_insertion": lambda m, x: deletion_insertion(
        m, x, metric, {"map": torch.zeros(x.layout.shape)}, steps=1, random_orders=1
    ),
    "looking.patchscope": lambda m, x: patchscope(
        m, x, "last", layer=1, target="Eh?", new_tokens=1
    ),
    "looking.head_lens": lambda m, x: head_lens(m, x),
    "heads.head_scores": lambda m, x: head_scores(m, x),
    "heads.copying_scores": lambda m, x: copying_scores(m, x),
    "heads.relative_attention": lambda m, x: relative_attention(m, x, x),
    "heads.redistribution_hooks": redistribute,
    "heads.reweighting_hooks": reweight,
}
"""Methods that need something of a model."""


def test_names_are_those_of_functions_and_every_need_is_tried():
    for method in METHODS:
        assert reduce(getattr, method.name.split("."), mm_lens)
    need = {m.name for m in METHODS if m.needs or m.attention}
    assert need == {*TRIED}


def works(model, inputs, name):
    try:
        TRIED[name](model, inputs)
    except MMLensError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_listed_is_what_works(attention):
    model = load_tiny(attention=attention, check=False)
    inputs = model.prepare("Eh?", random_image(12, 12))
    table = model.methods().set_index("method")
    assert table["works"].all()
    for name in TRIED:
        assert works(model, inputs, name) == table.loc[name, "works"], name
    needs = ("rerun", "mask", "cache", "pattern", "residual")
    for need in needs if attention == "eager" else ("pattern",):  # the others know of no attention
        model.report.findings.clear()
        model.report.add("error", f"Broken: {need}.", spoils=need)
        table = model.methods().set_index("method")
        for name in TRIED:
            assert works(model, inputs, name) == table.loc[name, "works"], (name, need)
        broken = table[table["reason"] == f"Broken: {need}."]
        assert len(broken)
    assert model.methods()["reason"].str.len().gt(0).equals(~model.methods()["works"])


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
def test_blocks_without_attention():
    model, _ = open_family("qwen3.5", "eager")
    inputs = make_inputs(model, rows=(True,))
    table = model.methods().set_index("method")
    for name in TRIED:
        assert works(model, inputs, name) == table.loc[name, "works"], name
    assert table.loc["attribution.relevance", "reason"] == "Block 0 has no attention."
