"""Copying against a plain loop over the native model's own weights, and a head built to copy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import FAMILIES, load_tiny
from native_attention import native
from tiny import random_image

from mm_lens import InputError
from mm_lens.heads import copying_scores


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare("Eh? Oh!", random_image(24, 12, 1))


def written_by_hand(family, inputs, block, head, positions):
    """What a head writes for each token, as logits of the native model."""
    loaded, _ = FAMILIES[family]()
    language = loaded.model.language_model
    layer = language.layers[block]
    held = []
    layer.self_attn.v_proj.register_forward_hook(lambda m, a, out: held.append(out))
    where = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        loaded(**inputs, position_ids=where)
        d, config = layer.self_attn.head_dim, loaded.config.text_config
        key = head // (config.num_attention_heads // config.num_key_value_heads)
        out = layer.self_attn.o_proj.weight[:, head * d : (head + 1) * d]
        return [
            loaded.lm_head(language.norm(held[0][0, p, key * d : (key + 1) * d] @ out.T)).numpy()
            for p in positions
        ]


@pytest.mark.every_family
@pytest.mark.parametrize("says", ["embedding", "lens"])
def test_scores_are_those_of_a_plain_loop(model, family, inputs, says):
    if says == "lens" and family != "llava-next":
        pytest.skip("one family is enough for the second way")
    table = copying_scores(model, inputs, "visual", says=says, layers=[1], top_k=20)
    attentions, states = native(family, inputs)
    loaded, _ = FAMILIES[family]()
    mask = inputs.layout.mask("visual")[0]
    positions = mask.nonzero()[:, 0].tolist()
    with torch.no_grad():
        if says == "lens":
            out = loaded.lm_head(loaded.model.language_model.norm(states[1][0, mask]))
            words = out.argmax(-1).tolist()
        else:
            rows = loaded.get_input_embeddings().weight.clone()
            if loaded.config.image_token_id < len(rows):
                rows[loaded.config.image_token_id] = 0
            cosine = torch.cosine_similarity(states[0][0, mask][:, None], rows[None], dim=-1)
            words = cosine.argmax(-1).tolist()
    assert len({*words}) > 1
    for head in (0, model.cfg.n_heads - 1):
        logits = written_by_hand(family, inputs, 1, head, positions)
        below = [lambda w, x=x: np.mean(x < x[w]) * len(x) / (len(x) - 1) for x in logits]
        own = [share(w) for share, w in zip(below, words, strict=True)]
        other = [share(v) for share, w in zip(below, words, strict=True) for v in words if v != w]
        first = [np.sum(x > x[w]) < 20 for x, w in zip(logits, words, strict=True)]
        weight = attentions[1][0, head, -1, mask].double().detach().numpy()
        row = table[table["head"] == head].iloc[0]
        assert row["rank"] == pytest.approx(np.mean(own), abs=1e-6)
        assert row["others"] == pytest.approx(np.mean(other), abs=1e-6)
        assert row["top"] == pytest.approx(np.mean(first))
        assert row["attention"] == pytest.approx(weight.sum(), rel=1e-4)
        assert row["attended"] == pytest.approx(np.average(own, weights=weight), rel=1e-4)
        assert row["n_tokens"] == len(positions)


def test_a_head_that_is_built_to_copy_is_found():
    """Its values hold the word's direction in the unembedding."""
    model = load_tiny(check=False)
    inputs = model.prepare("Eh? Oh!", random_image(24, 12, 1))
    text = inputs.layout.mask("text")
    loaded = model.original_model
    layer = loaded.model.language_model.layers[1]
    d = layer.self_attn.head_dim
    plain = copying_scores(model, inputs, "text", layers=[1])
    wanted = loaded.lm_head.weight[inputs.input_ids[0]].detach()
    out = layer.self_attn.o_proj.weight[:, :d].detach()
    values = torch.linalg.lstsq(out.double(), wanted.double().T).solution.T.float()

    def edit(x, hook):
        """The values that the first two heads share."""
        x[:, :, 0] = values
        return x

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_v", edit)]):
        table = copying_scores(model, inputs, "text", layers=[1])
    own = table.set_index("head")["rank"] - table.set_index("head")["others"]
    before = plain.set_index("head")["rank"] - plain.set_index("head")["others"]
    assert own[0] > 0.3 > before[0]
    assert table["top"][0] > plain["top"][0]
    assert own[model.cfg.n_heads - 1] == pytest.approx(before[model.cfg.n_heads - 1])
    assert table["n_tokens"][0] == int(text.sum())


def test_words_of_ones_own_and_what_is_refused(model, inputs):
    one = torch.full_like(inputs.input_ids, 7)
    table = copying_scores(model, inputs, "visual", says=one, layers=[-1])
    assert all(math.isnan(x) for x in table["others"])
    with pytest.raises(InputError, match="says is one of"):
        copying_scores(model, inputs, says="nothing")
    with pytest.raises(InputError, match="no source token has a word"):
        copying_scores(model, inputs, says=one * -1, layers=[0])
    with pytest.raises(InputError, match="top_k=9999 is more than"):
        copying_scores(model, inputs, top_k=9999)
