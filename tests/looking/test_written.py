"""Readings of what is written, against the native model's own `generate`."""

from __future__ import annotations

import pytest
import torch
from opened_families import make_inputs, open_family

from mm_lens import InputError
from mm_lens.causal.knockout import knockout
from mm_lens.looking.written import read_written

STEPS = 3


@pytest.fixture(scope="module", params=["llava-next-mistral", "gemma3"])
def pair(request):
    bridge, native = open_family(request.param, "eager")
    inputs = make_inputs(bridge, rows=(True, True), side="left")
    never = {"suppress_tokens": [*range(90, bridge.cfg.d_vocab)]}
    options = {"max_new_tokens": STEPS, "stop_at_eos": False, **never}
    return bridge, native, inputs, options


def native_reading(native, inputs, options):
    plain = {k: v for k, v in options.items() if k != "stop_at_eos"}
    return native.generate(
        **inputs.native,
        **plain,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=3,
        output_attentions=True,
        output_hidden_states=True,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("cache", [True, False])
def test_attention_and_lens_of_each_token(pair, cache):
    bridge, native, inputs, options = pair
    want = native_reading(native, inputs, options)
    got = read_written(bridge, inputs, top_k=2, use_past_kv_cache=cache, **options)
    n = inputs.input_ids.shape[1]
    assert torch.equal(got.tokens, want.sequences[:, n:])
    head, norm = native.lm_head, native.model.language_model.norm
    for step in range(STEPS):
        logits = want.logits[step].softmax(-1)
        written = got.tokens[:, step]
        own = logits.gather(1, written[:, None])[:, 0]
        assert (got.probability[:, step] - own).abs().max() < 1e-4
        for b, pattern in enumerate(want.attentions[step]):
            weights = pattern[:, :, -1].mean(1)
            whole = torch.zeros(2, n + step)
            whole[:, n + step - weights.shape[1] :] = weights  # a window keeps the latest
            assert (got.attention[b, :, step] - whole[:, :n]).abs().max() < 1e-5
        with torch.no_grad():
            for layer, state in enumerate(want.hidden_states[step][:-1]):
                read = head(norm(state[:, -1])).softmax(-1)
                chosen = read.gather(1, written[:, None])
                assert (got.lens[layer, :, step] - chosen[:, 0]).abs().max() < 1e-4
                assert torch.equal(got.rank[layer, :, step], (read > chosen).sum(1))
                assert torch.equal(got.top_ids[layer, :, step], read.topk(2).indices)
    visual = inputs.layout.mask("visual")
    table = got.table
    assert len(table) == 2 * STEPS * len(got.layers)
    row = table[(table["row"] == 1) & (table["step"] == 2) & (table["layer"] == 2)].iloc[0]
    assert row["image_attention"] == pytest.approx(float(got.attention[1, 1, 2][visual[1]].sum()))
    assert row["word"] == got.words(1)[2]
    assert got.text[0] == bridge.tokenizer.decode(got.tokens[0], skip_special_tokens=True)
    assert torch.allclose(got.looks(1), got.attention[:, 1].mean(0))


def test_readings_see_what_is_knocked_out(pair):
    bridge, _, inputs, options = pair
    with knockout(bridge, inputs, query="last", key="visual"):
        got = read_written(bridge, inputs, layers=[-1], **options)
    visual = inputs.layout.mask("visual")
    assert (got.attention.transpose(0, 1)[0][..., visual[0]] == 0).all()
    assert got.layers == (bridge.cfg.n_layers,)
    sampled = read_written(
        bridge, inputs, layers=[0], do_sample=True, top_k=1, num_return_sequences=2, **options
    )
    assert sampled.layout.shape[0] == len(sampled.tokens) == 4


def test_rows_end_and_refusals(pair):
    bridge, _, inputs, options = pair
    first = read_written(bridge, inputs, layers=[-1], **options).tokens
    stop = {**options, "stop_at_eos": True, "eos_token_id": int(first[0, 1])}
    got = read_written(bridge, inputs, layers=[-1], **stop)
    assert got.length[0] == 2 or int(first[0, 0]) == int(first[0, 1])
    with pytest.raises(InputError, match="leave out num_beams="):
        read_written(bridge, inputs, num_beams=2)
    with pytest.raises(InputError, match="leave out output_logits="):
        read_written(bridge, inputs, output_logits=True)
    with pytest.raises(InputError, match="not at 7"):
        got.looks(0, blocks=[7])
