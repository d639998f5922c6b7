"""Attention maps and values per token against the native model and plain loops."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from conftest import FAMILIES, load_tiny
from tiny import random_image

from mm_lens import InputError, MMLensWarning
from mm_lens.looking.attention import attention_map
from mm_lens.looking.token_values import cosine_to_mean, find_words, linearity_error, norms


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def eager(family):
    return load_tiny(family, attention="eager", check=False)


def prepare(model, side):
    return model.prepare(
        ["What is it?", "No picture here.", "And what is this one?"],
        [random_image(31, 57), None, random_image(40, 22, 2)],
        padding_side=side,
    )


@torch.no_grad()
def native(family, inputs):
    """Attention of every block, and every state, of the native model."""
    model, _ = FAMILIES[family]()
    model.set_attn_implementation("eager")
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    states = []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(
            lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
    output = model(
        **inputs, position_ids=positions, output_attentions=True, output_hidden_states=True
    )
    return output.attentions, [output.hidden_states[0], *states]


@pytest.mark.parametrize("side", ["left", "right"])
def test_maps_equal_native_attention(eager, family, side):
    inputs = prepare(eager, side)
    attentions, _ = native(family, inputs)
    layout = inputs.layout
    word = find_words(eager, inputs, "what is")
    maps = {
        "last": attention_map(eager, inputs),
        "word": attention_map(eager, inputs, word, "all", layers=[-1, 0]),
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


def test_sdpa_has_no_maps(model):
    with pytest.raises(InputError, match='attention="eager"'):
        attention_map(model, model.prepare("What is it?", random_image(9, 9)))


def test_empty_sources_and_unknown_blocks(eager):
    inputs = prepare(eager, "left")
    with pytest.raises(InputError, match="no position"):
        attention_map(eager, inputs, "text between 0 and 1")
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


def test_norms_and_cosines_equal_plain_loops(eager, family):
    inputs = prepare(eager, "left")
    _, states = native(family, inputs)
    layout = inputs.layout
    visual, text = layout.mask("visual"), layout.mask("text")
    found = (
        norms(eager, inputs),
        cosine_to_mean(eager, inputs),
        cosine_to_mean(eager, inputs, "visual", "text", layers=[1]),
    )
    for layer, state in enumerate(states):
        for row, position in layout.mask("all").nonzero().tolist():
            x = state[row, position].double()
            want = math.sqrt(sum(float(value) ** 2 for value in x))
            assert float(found[0][layer, row, position]) == pytest.approx(want, rel=1e-5)
            if not visual[row, position]:
                assert found[1][layer, row, position].isnan()
                continue
            means = [sum(state[m].double()) / int(m.sum()) for m in (visual, text)]
            cosines = [float(x @ mean / (x.norm() * mean.norm())) for mean in means]
            assert float(found[1][layer, row, position]) == pytest.approx(cosines[0], abs=1e-5)
            if layer == 1:
                assert float(found[2][0, row, position]) == pytest.approx(cosines[1], abs=1e-5)
    assert found[0][:, ~layout.mask("all")].isnan().all()


def test_linearity_error_finds_the_planted_token(model):
    """Block 1 is made a linear map; only one token is carried elsewhere."""
    inputs = model.prepare(["What is it?"] * 8, [[random_image(40, 60, seed)] for seed in range(8)])
    layout = inputs.layout
    d = model.cfg.d_model
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(d, d, generator=generator) / d**0.5
    row, position = 3, int(layout.positions("visual")[3, 4])
    held = {}

    def keep(state, hook):
        held["x"] = state

    def carry(state, hook):
        out = held["x"] @ matrix + 1
        out[row, position] += 10
        return out

    hooks = [("blocks.1.hook_resid_pre", keep), ("blocks.1.hook_resid_post", carry)]
    with model.hooks(fwd_hooks=hooks), warnings.catch_warnings():
        warnings.simplefilter("ignore", MMLensWarning)
        found = linearity_error(model, inputs, layers=[2])[0]
    visual = layout.mask("visual")
    assert found[~visual].isnan().all()
    assert int(found[visual].argmax()) == visual[:row].sum() + 4
    others = found[visual].clone()
    others[found[visual].argmax()] = 0
    assert found[row, position] > 20 * others.max()


def test_linearity_error_wants_pictures_enough(model):
    with pytest.raises(InputError, match="too few"):
        linearity_error(model, model.prepare("What is it?", random_image(31, 57)))


def test_state_zero_has_no_linearity_error(model):
    inputs = model.prepare(["What is it?"] * 3, [[random_image(31, 57, seed)] for seed in range(3)])
    with pytest.warns(MMLensWarning, match="tokens for each dimension"):
        found = linearity_error(model, inputs, layers=[0, 1])
    assert found[0].isnan().all()
    visual = inputs.layout.mask("visual")
    assert found[1][visual].isfinite().all()
    assert 0 < float(found[1][visual].mean()) < 1.5
    with pytest.warns(MMLensWarning, match="tokens for each dimension"):
        turned = linearity_error(model, inputs, layers=[1 - 4, 0])
    assert torch.equal(turned.flip(0).nan_to_num(-1), found.nan_to_num(-1))


def test_find_words_finds_words(model):
    inputs = model.prepare("is the red or the blue one red?", random_image(9, 9))
    tokens = model.tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())
    for text, count in (("red", 2), ("the blue", 1), ("the", 2)):
        found = find_words(model, inputs, text)[0]
        spelled = "".join(t for t, here in zip(tokens, found, strict=True) if here)
        assert "".join(c for c in spelled if c.isalpha()) == text.replace(" ", "") * count
    for absent in ("green", "", "x"):
        with pytest.raises(InputError, match="No prompt says"):
            find_words(model, inputs, absent)
