"""Generation equals that of native transformers, token by token, on many families."""

from __future__ import annotations

import inspect

import pytest
import torch
from opened_families import NAMES, make_inputs, open_family
from transformer_lens.model_bridge import TransformerBridge
from transformers import MaxLengthCriteria

from mm_lens import InputError

STEPS = 5
NOT_SAMPLED = {"suppress_tokens": [*range(90, 173)]}  # placeholders, which random models write
QUIET = {"max_new_tokens": STEPS, "stop_at_eos": False, "verbose": False, **NOT_SAMPLED}


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    return open_family(request.param)


@pytest.fixture
def inputs(pair):
    """Padded on the left where the model can be; else one row."""
    bridge, _ = pair
    if "minimax" in bridge.cfg.model_name:
        return make_inputs(bridge, rows=(True,))
    return make_inputs(bridge, rows=(True, False, True), side="left")


def native_tokens(native, inputs, seed=0, **options):
    torch.manual_seed(seed)
    plain = {"do_sample": False, "eos_token_id": None, "pad_token_id": 3, "max_new_tokens": STEPS}
    plain |= NOT_SAMPLED
    return native.generate(**inputs.native, **{**plain, **options})


def test_greedy(pair, inputs):
    bridge, native = pair
    want = native_tokens(native, inputs)
    assert want.shape[1] == inputs.input_ids.shape[1] + STEPS
    got = bridge.generate(inputs, do_sample=False, **QUIET)
    assert torch.equal(got, want)
    options = {k: v for k, v in QUIET.items() if k != "verbose"}
    assert torch.equal(bridge.hf_generate(inputs, do_sample=False, **options), want)


def test_without_a_cache(pair, inputs):
    bridge, native = pair
    want = native_tokens(native, inputs, use_cache=False)
    got = bridge.generate(inputs, do_sample=False, use_past_kv_cache=False, **QUIET)
    assert torch.equal(got, want)


def test_beams(pair, inputs):
    bridge, native = pair
    want = native_tokens(native, inputs, num_beams=3, num_return_sequences=2)
    got = bridge.generate(inputs, do_sample=False, num_beams=3, num_return_sequences=2, **QUIET)
    assert torch.equal(got, want)


def test_sampled_with_a_seed(pair, inputs):
    bridge, native = pair
    for ours, theirs in (
        ({"temperature": 0.7}, {"temperature": 0.7, "top_k": 0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_p": 0.6}, {"top_p": 0.6, "top_k": 0}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5, "top_k": 0}),
    ):
        want = native_tokens(native, inputs, seed=3, do_sample=True, **theirs)
        torch.manual_seed(3)
        assert torch.equal(bridge.generate(inputs, **ours, **QUIET), want), ours


def test_steps_one_by_one(pair, inputs):
    """Loops that call the model with its cache, as TransformerLens's stream does."""
    bridge, native = pair
    want = native_tokens(native, inputs, suppress_tokens=None)
    allowed = {k: v for k, v in QUIET.items() if k not in NOT_SAMPLED}
    options = {"do_sample": False, **allowed}
    streamed = torch.cat([*bridge.generate_stream(inputs, max_tokens_per_yield=2, **options)], 1)
    assert torch.equal(streamed, want)
    if "minimax" not in bridge.cfg.model_name:  # writes its image token, which a whole pass refuses
        options["use_past_kv_cache"] = False
        one = make_inputs(bridge, rows=(True,))
        want = native_tokens(native, one, use_cache=False, suppress_tokens=None)
        streamed = [*bridge.generate_stream(one, max_tokens_per_yield=2, **options)]
        assert torch.equal(torch.cat(streamed, 1), want)


def test_steps_by_hand(pair, inputs):
    """`past_key_values`, as TransformerLens documents it: positions go on where the model's do."""
    bridge, native = pair
    want = native_tokens(native, inputs, suppress_tokens=None)
    mask, tokens = inputs.attention_mask, inputs.input_ids
    with torch.no_grad():
        logits, cache = bridge(inputs, return_type="logits_and_cache", use_cache=True)
        for _ in range(STEPS):
            last = logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, last], 1)
            mask = torch.cat([mask, torch.ones_like(last)], 1)
            logits, cache = bridge(
                last,
                past_key_values=cache,
                attention_mask=mask,
                return_type="logits_and_cache",
            )
    assert torch.equal(tokens, want)


def test_a_text_does_not_go_on_from_the_last_picture(pair):
    """Positions that a model keeps of one prompt are not those of the next."""
    bridge, native = pair
    pictured = make_inputs(bridge, rows=(True,))
    text = make_inputs(bridge, rows=(False,))
    options = {"do_sample": False, **QUIET}
    want = native_tokens(native, text)
    with torch.no_grad():
        bridge(pictured)
        assert torch.equal(bridge.generate(text, **options), want)
        bridge(pictured)
        tokens = text.input_ids
        logits, cache = bridge(tokens, return_type="logits_and_cache", use_cache=True)
        for _ in range(STEPS):
            last = logits[:, -1, :90].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, last], 1)
            logits, cache = bridge(last, past_key_values=cache, return_type="logits_and_cache")
    assert torch.equal(tokens, want)


def test_texts_padded_on_the_left(pair):
    bridge, native = pair
    if "minimax" in bridge.cfg.model_name:
        with pytest.raises(InputError, match="one prompt at a time"):
            bridge.generate(make_inputs(bridge), **QUIET)
        return
    inputs = make_inputs(bridge, rows=(False, False))
    want = native_tokens(native, inputs)
    assert torch.equal(bridge.generate(inputs, do_sample=False, **QUIET), want)


def test_hooks_of_image_tokens_act_on_the_prompt(pair, inputs):
    """As a native model whose block is changed there; each decoding step goes on from that."""
    bridge, native = pair
    visual = inputs.layout.mask("visual")[..., None]
    calls = []

    def flip(rows, hook):
        calls.append(rows.shape)
        return rows.flip(-1)

    def native_flip(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        if hidden.shape[1] == 1:
            return None
        copies = len(hidden) // len(visual)
        there = visual.repeat_interleave(copies, 0)
        there = torch.nn.functional.pad(there, (0, 0, 0, hidden.shape[1] - there.shape[1]))
        hidden = torch.where(there, hidden.flip(-1), hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    plain = native_tokens(native, inputs)
    handle = native.model.language_model.layers[1].register_forward_hook(native_flip)
    hooks = [("blocks.1.visual.hook_resid_post", flip)]
    for ours, theirs, n in (
        ({}, {}, 1),
        ({"use_past_kv_cache": False}, {"use_cache": False}, STEPS),
        ({"num_beams": 2}, {"num_beams": 2}, 1),
        ({"num_beams": 2, "use_past_kv_cache": False}, {"num_beams": 2, "use_cache": False}, STEPS),
    ):
        calls.clear()
        want = native_tokens(native, inputs, **theirs)
        with bridge.hooks(fwd_hooks=hooks):
            got = bridge.generate(inputs, do_sample=False, **ours, **QUIET)
        assert torch.equal(got, want), ours
        assert len(calls) == n, ours
    handle.remove()
    assert not torch.equal(native_tokens(native, inputs), want) or torch.equal(plain, want)


# ---- what TransformerLens documents keeps its meaning ----


@pytest.fixture(scope="module")
def one():
    return open_family("qwen2.5-vl")


def test_results_are_those_of_transformer_lens(one):
    bridge, native = one
    inputs = make_inputs(bridge, rows=(True,))
    tokens = native_tokens(native, inputs)
    options = {"do_sample": False, **QUIET}
    text = bridge.generate(inputs, return_type="str", **options)
    assert text == bridge.tokenizer.decode(tokens[0], skip_special_tokens=True)
    found, fed = bridge.generate(inputs, return_input_tokens=True, **options)
    assert torch.equal(found, tokens)
    assert torch.equal(fed, inputs.input_ids)
    out = bridge.generate(inputs, output_logits=True, **options)
    assert torch.equal(out.sequences, tokens)
    assert len(out.logits) == STEPS
    assert out.logits[0][:, :90].argmax(-1) == tokens[0, -STEPS]


def test_rows_end_at_the_stop_token(one):
    bridge, native = one
    inputs = make_inputs(bridge, rows=(True,))
    third = int(native_tokens(native, inputs)[0, -3])
    options = {**QUIET, "stop_at_eos": True, "eos_token_id": third, "do_sample": False}
    got = bridge.generate(inputs, **options)
    assert got[0, -1] == third
    assert got.shape[1] <= inputs.input_ids.shape[1] + 3


def test_a_checkpoints_own_settings_do_not_count(one):
    bridge, native = one
    inputs = make_inputs(bridge, rows=(True,))
    want = native_tokens(native, inputs)
    config = bridge.original_model.generation_config
    config.num_beams, config.no_repeat_ngram_size, config.max_length = 4, 2, 3
    try:
        assert torch.equal(bridge.generate(inputs, do_sample=False, **QUIET), want)
        assert bridge.original_model.generation_config is config
    finally:
        config.num_beams, config.no_repeat_ngram_size, config.max_length = 1, 0, 20


def test_texts_and_lists_of_texts(one):
    bridge, native = one
    options = {"do_sample": False, **QUIET}
    alone = [bridge.generate(text, **options) for text in ("Why is it so?", "Eh?")]
    assert bridge.generate(["Why is it so?", "Eh?"], **options) == alone
    tokens = bridge.to_tokens("Eh?")
    want = native.generate(
        tokens, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, **NOT_SAMPLED
    )
    assert alone[1] == bridge.tokenizer.decode(want[0], skip_special_tokens=True)


def test_frequency_penalty(one):
    """A large one forbids every token that was there."""
    bridge, _ = one
    inputs = make_inputs(bridge, rows=(True,))
    got = bridge.generate(inputs, freq_penalty=1e4, **QUIET)[0]
    new, old = got[-STEPS:].tolist(), inputs.input_ids[0].tolist()
    assert len({*new}) == STEPS
    assert not {*new} & {*old}
    with pytest.raises(InputError, match="freq_penalty is not negative"):
        bridge.generate(inputs, freq_penalty=-1.0, **QUIET)


def test_unknown_arguments_are_refused(one):
    bridge, _ = one
    with pytest.raises(InputError, match="generate takes no max_tokens="):
        bridge.generate(make_inputs(bridge, rows=(True,)), max_tokens=3)


REFUSED = [
    {"stop_strings": "."},
    {"stopping_criteria": MaxLengthCriteria(3)},
    {"return_cache": True},
    {"forced_bos_token_id": 5},
]


@pytest.mark.parametrize("asked", REFUSED, ids=lambda asked: next(iter(asked)))
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "pixels alone"])
def test_what_transformer_lens_refuses_for_images_it_refuses_first(one, asked, whole):
    """With its own error, also where the inputs would be refused next."""
    bridge, _ = one
    prepared = make_inputs(bridge, rows=(True,))
    alone = {"input_ids": prepared.input_ids, "pixel_values": prepared.pixel_values}
    kind = ValueError if "forced_bos_token_id" in asked else NotImplementedError
    with pytest.raises(kind, match=r"multimodal|only meaningful for encoder-decoder"):
        bridge.generate(prepared if whole else alone, **asked, **QUIET)


def test_images_stop_at_a_string_in_hf_generate(one):
    bridge, native = one
    inputs = make_inputs(bridge, rows=(True,))
    n = inputs.input_ids.shape[1]
    free = native_tokens(native, inputs)[0]
    options = {k: v for k, v in QUIET.items() if k != "verbose"} | {"do_sample": False}
    stop = bridge.tokenizer.decode(free[n + 1])
    stopping = {"stop_strings": stop, "tokenizer": bridge.tokenizer}
    assert (
        bridge.hf_generate(inputs, **options, **stopping)[0].tolist()
        in (
            free[: n + 1].tolist(),  # the first token may be the same
            free[: n + 2].tolist(),
        )
    )


def test_arguments_by_position_count_alike(one):
    """`return_cache` is the 16th."""
    bridge, _ = one
    names = list(inspect.signature(TransformerBridge.generate).parameters.values())[2:]
    before = [p.default for p in names[: [p.name for p in names].index("return_cache")]]
    with pytest.raises(NotImplementedError, match="multimodal"):
        bridge.generate(make_inputs(bridge, rows=(True,)), *before, True)


def test_texts_stop_at_a_string(one):
    """Rows that stopped are filled up while others go on, also where no token ends a row."""
    bridge, native = one
    texts = ["Why is it so?", "Eh?"]
    tokens = bridge.to_tokens(texts, padding_side="left")
    mask = (tokens != bridge.tokenizer.pad_token_id).long()
    free = native.generate(
        tokens, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=None
    )
    n = tokens.shape[1]
    stop = bridge.tokenizer.decode(free[0, n + 1 : n + 2])
    found = bridge.generate(
        tokens, STEPS, False, attention_mask=mask, stop_strings=stop, do_sample=False, verbose=False
    )
    for row in range(2):
        new = free[row, n:].tolist()
        end = next((k for k, t in enumerate(new) if stop in bridge.tokenizer.decode([t])), STEPS)
        want = (new[: end + 1] + [bridge.tokenizer.pad_token_id] * STEPS)[: found.shape[1] - n]
        assert found[row, n:].tolist() == want


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"top_k": 0}, "top_k is at least 1"),
        ({"top_p": 0.0}, "top_p is above 0"),
        ({"do_sample": False, "freq_penalty": -1.0}, "freq_penalty is not negative"),
    ],
)
def test_what_no_token_can_be_drawn_by_is_refused(one, asked, message):
    """As by TransformerLens for texts: transformers would take it for something else."""
    bridge, _ = one
    with pytest.raises(InputError, match=message):
        bridge.generate(make_inputs(bridge, rows=(True,)), **asked, **QUIET)


def test_padding_cannot_be_read_without_a_pad_token(one, monkeypatch):
    bridge, _ = one
    tokens = make_inputs(bridge, rows=(False,)).input_ids
    monkeypatch.setattr(bridge, "tokenizer", None)
    with pytest.raises(InputError, match="the tokenizer has no pad token"):
        bridge.generate(tokens, padding_side="left", **QUIET)
