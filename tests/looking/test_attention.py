"""Attention maps and values per token against the native model and plain loops."""

from __future__ import annotations

import pytest
import torch
from native_attention import native, prepare

from mm_lens import InputError
from mm_lens.looking.attention import attention_map
from mm_lens.looking.token_values import cosine_to_mean, find_words, norms

pytestmark = pytest.mark.every_family


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_maps_equal_native_attention(model, eager, family, side, attention):
    eager = eager if attention == "eager" else model
    inputs = prepare(eager, side)
    attentions, _ = native(family, inputs)
    layout = inputs.layout
    word = find_words(eager, inputs, "what is")
    maps = {
        "last": attention_map(eager, inputs),
        "word": attention_map(eager, inputs, query=word, key="all", layers=[-1, 0]),
    }
    assert maps["last"].shape == (3, 4, *layout.shape)
    for row in range(3):
        attended = inputs.attention_mask[row].nonzero().squeeze(1).tolist()
        sources = {"last": [attended[-1]], "word": word[row].nonzero().squeeze(1).tolist()}
        targets = {"last": layout.mask("visual")[row], "word": layout.mask("all")[row]}
        for name, blocks in (("last", (0, 1, 2)), ("word", (2, 0))):
            for k, block in enumerate(blocks):
                for head in range(4):
                    found = maps[name][k, head, row]
                    for position in range(layout.shape[1]):
                        if not targets[name][position] or not sources[name]:
                            assert found[position].isnan()
                            continue
                        pattern = attentions[block][row, head]
                        want = sum(float(pattern[s, position]) for s in sources[name])
                        want /= len(sources[name])
                        assert float(found[position]) == pytest.approx(want, abs=1e-6)
    asked = word.any(1)
    assert not asked[1]
    whole = maps["word"][:, :, asked].nansum(-1)
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_empty_sources_and_unknown_blocks(eager):
    inputs = prepare(eager, "left")
    with pytest.raises(InputError, match="no position"):
        attention_map(eager, inputs, query="text between 0 and 1")
    with pytest.raises(InputError, match="no layer 3: there are 3"):
        attention_map(eager, inputs, layers=[3])


@pytest.mark.parametrize("read", [norms, cosine_to_mean])
def test_layers_come_in_the_order_asked_for(eager, read):
    inputs = prepare(eager, "left")
    every = read(eager, inputs)
    assert not every[0].equal(every[2])
    for layers in ([2, 0], [-1], [-2, 3]):
        found = read(eager, inputs, layers=layers)
        assert torch.equal(found.nan_to_num(-1), every[layers].nan_to_num(-1))
    with pytest.raises(InputError, match="named twice"):
        read(eager, inputs, layers=[3, -1])
