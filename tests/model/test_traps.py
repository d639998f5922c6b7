"""Traps of TransformerLens 4.3 and transformers 5.23 (DESIGN section 5), one test each.

Where it can be shown, the first half of a test shows the trap on the plain bridge (a canary: when
it fails, TransformerLens has mended it), the second that mm_lens mends or refuses it.
"""

from __future__ import annotations

import gc
import re

import pytest
import torch
from conftest import FAMILIES, load_tiny
from keyword_inputs import keywords, n_image
from tiny import random_image
from transformer_lens import patching
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import DynamicCache

import mm_lens
from mm_lens import HookError, InputError

pytestmark = pytest.mark.every_family


def plain_bridge(family):
    native, processor = FAMILIES[family]()
    bridge = build_bridge_from_module(
        native,
        type(native).__name__,
        hf_config=native.config,
        tokenizer=processor.tokenizer,
    )
    bridge.processor = processor
    return bridge


def logit(logits):
    return logits[0, -1, 7]


# 1. Tools that call model(tokens) run without the image.


def test_tools_see_the_image_under_bound(family, model, one):
    plain = plain_bridge(family)
    assert plain(one.input_ids).shape == (*one.input_ids.shape, 113)  # canary: blind, no error
    with pytest.raises(InputError, match=f"{n_image(one)} image placeholders, but no image came"):
        model(one.input_ids)
    with pytest.raises(InputError, match=r"model\.prepare"):
        model.original_model(one.input_ids)

    # A whole sweep, over the heads of each layer: one by position has ten times the passes.
    other = model.prepare("What is it?", random_image(31, 57, 9))
    _, clean = model.run_with_cache(other, names_filter=mm_lens.names("z"))
    with model.bound(one):
        assert torch.equal(model(one.input_ids), model(one))
        got = patching.get_act_patch_attn_head_out_all_pos(model, one.input_ids[:, :], clean, logit)
    assert got.shape == (model.cfg.n_layers, model.cfg.n_heads)

    layer, head = 1, 2
    donor = clean["z", layer][:, :, head]

    def put(x, hook):
        x[:, :, head] = donor
        return x

    want = model.run_with_hooks(one, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)])
    assert torch.equal(got[layer, head], logit(want))
    assert not torch.equal(logit(want), logit(model(one)))


def test_bound_repeats_images_for_copies_and_refuses_strangers(model, one, batch):
    with model.bound(one):
        copies = model(one.input_ids.repeat(3, 1))
        assert torch.allclose(copies, model(one).expand_as(copies), atol=1e-5)
        with pytest.raises(InputError, match=rf"\[{n_image(one)}\]"):
            model(batch.input_ids)
        words = model.prepare("Only words.")
        assert torch.equal(model(words.input_ids), model(words))
    with pytest.raises(InputError):  # unbound again
        model(one.input_ids)


def test_bound_refuses_tokens_of_other_prepared_inputs(model, one):
    """They would get the picture of the bound ones: clean would be corrupted, every effect 0."""
    other = model.prepare("What is it?", random_image(31, 57, 9))
    assert torch.equal(one.input_ids, other.input_ids)
    with model.bound(one):
        for tokens in (
            other.input_ids,
            other.input_ids[:1],
            other.input_ids[0],
            other.input_ids.T.T,
        ):
            with pytest.raises(InputError, match=r"not bound.*bound\(corrupted, clean\)"):
                model(tokens)
        want = model(one)
        for tokens in (
            one.input_ids[:],
            one.input_ids[0],
            one.input_ids.clone(),
            other.input_ids.clone(),
        ):
            assert torch.equal(model(tokens), want)
        assert torch.equal(model(other), model(**other))  # it brings its own
        assert not torch.equal(model(other), want)
    with model.bound(one, other):
        assert torch.equal(model(other.input_ids), model(other))


def test_tools_that_match_positions_themselves_work_under_bound(model, one):
    other = model.prepare("Why?", random_image(57, 31, 9))
    _, clean = model.run_with_cache(other, names_filter=mm_lens.names("resid_pre"))

    def sweep():
        return mm_lens.patching.get_act_patch_resid_pre(
            model, one, clean, logit, axis=["visual"], layers=[1], progress=False
        ).values

    want = sweep()
    with model.bound(one):
        assert torch.equal(sweep(), want)
        hooks = mm_lens.ablation.ablation_hooks(
            model, one, "visual", layers=[1], hook="resid_pre", how="resample", donor=clean
        )
        assert torch.allclose(logit(model.run_with_hooks(one, fwd_hooks=hooks)), want, atol=1e-5)
        with pytest.raises(InputError, match="another layout"):
            clean["resid_pre", 1]


def test_tokens_are_remembered_as_long_as_they_live(model):
    known = len(mm_lens.model.inputs._STORAGES)
    for k in range(5):
        tokens = model.prepare("Eh?", random_image(31, 57, k)).input_ids
        piece = model.prepare("Eh?", random_image(31, 57, k)).input_ids[:, 1:]
        assert mm_lens.model.inputs.is_prepared(tokens)
        assert mm_lens.model.inputs.is_prepared(piece)
        assert not mm_lens.model.inputs.is_prepared(piece.clone())
    del tokens, piece
    gc.collect()
    model.prepare("Eh?")
    assert len(mm_lens.model.inputs._STORAGES) <= known + 2


def test_bound_refuses_other_padding(model):
    image = random_image(31, 57)
    padded = model.prepare(["What?", "What is it, tell me?"], [image, image])
    with model.bound(padded):
        assert torch.equal(model(padded.input_ids), model(padded))
        with pytest.raises(InputError, match="not padded alike"):
            model(padded.input_ids[1:].repeat(2, 1))


def test_bound_after_a_cached_prefix(model, one):
    _, past = model(one.input_ids[:, :2], return_type="logits_and_cache", use_cache=True)
    with pytest.raises(InputError, match="no image came with it"):
        model(one.input_ids[:, 2:], past_key_values=past)
    _, past = model(one.input_ids[:, :2], return_type="logits_and_cache", use_cache=True)
    with model.bound(one):
        rest = model(one.input_ids[:, 2:], past_key_values=past)
    assert torch.allclose(rest, model(one)[:, 2:], atol=1e-5)


# 2. generate without KV cache drops the image after the first step: see test_native.


def test_generation_without_cache_sees_the_image_at_every_step(family, model, one):
    plain = plain_bridge(family)
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    cached = plain.generate(one.input_ids, **keywords(one), **options)
    uncached = plain.generate(one.input_ids, **keywords(one), use_past_kv_cache=False, **options)
    assert not torch.equal(cached, uncached)  # canary
    want = model.generate(one, **options)
    assert torch.equal(model.generate(one, use_past_kv_cache=False, **options), want)
    with model.bound(one):
        assert torch.equal(model.generate(one.input_ids, **options), want)


def test_attention_gets_its_cache_under_the_name_that_the_bridge_reads(family, one):
    """transformers 5.24 hands it over under another name: TransformerLens 4.3 does not see it, and
    cached generation with eager attention writes other tokens. Hence the bound in pyproject.toml.
    """
    native, _ = FAMILIES[family]()
    seen, layer = [], native.get_decoder().layers[1]
    layer.self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    cache = DynamicCache(config=native.config.get_text_config())
    native(**one, past_key_values=cache)
    assert seen[0]["past_key_values"] is cache  # canary

    plain = plain_bridge(family)
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    words = torch.arange(20, 29)[None]
    want = plain.generate(words, use_past_kv_cache=False, **options)
    assert torch.equal(plain.generate(words, **options), want)

    def rename(module, args, kwargs):
        return args, {
            "kept" if name == "past_key_values" else name: v for name, v in kwargs.items()
        }

    for block in plain.blocks:
        block.attn.register_forward_pre_hook(rename, with_kwargs=True)
    assert not torch.equal(plain.generate(words, **options), want)  # canary: and no error


# 3. Edits of the vision layer that the model reads do nothing.


def test_edit_of_the_vision_layer_that_is_read_works(family, model, one):
    name = "vision_encoder.encoder_layers.2.hook_out"  # hidden state -2 of 4 layers
    edit = [(name, lambda x, hook: x + 1)]
    plain = plain_bridge(family)
    before = plain(one.input_ids, **keywords(one))
    edited = plain.run_with_hooks(one.input_ids, fwd_hooks=edit, **keywords(one))
    assert torch.equal(before, edited)  # canary

    got = model.run_with_hooks(one, fwd_hooks=edit)
    assert not torch.equal(got, model(one))
    projector = "vision_projector.hook_in"
    want = model.run_with_hooks(one, fwd_hooks=[(projector, lambda x, hook: x + 1)])
    assert torch.equal(got, want)
    _, cache = model.run_with_cache(one, names_filter=[name, projector])
    assert torch.equal(cache[name][:, 1:], cache[projector])


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.hook_out",
        "vision_encoder.encoder_layers.3.hook_in",
        "vision_encoder.encoder_layers.3.hook_out",
        "vision_encoder.encoder_layers.3.mlp.hook_out",
    ],
)
def test_edits_above_the_layer_that_is_read_are_refused(model, one, name):
    _, cache = model.run_with_cache(one, names_filter=name)
    assert cache[name].shape[-1] == 20
    with pytest.raises(HookError, match=r"encoder_layers\.2\.hook_out"):
        model.run_with_hooks(one, fwd_hooks=[(name, lambda x, hook: x + 1)])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_edit_anywhere_is_a_silent_no_op(family, attention):
    """Every hook point of the bridge: an edit changes the output, or raises, or it never fires."""
    model = load_tiny(family, attention=attention, check=False)
    # A hook of every block at once, each editing a row of its own of four equal ones.
    n = model.cfg.n_layers
    inputs = model.prepare(["It?"] * (n + 1), [random_image(12, 17)] * (n + 1))
    want, silent, shared, groups = model(inputs).detach(), [], [], {}
    for name in sorted({point.name for point in model.hook_points()}):
        if model._gated_hook_reason(name) or model._remedy_if_dead(name):
            continue
        groups.setdefault(re.sub(r"^blocks\.\d+", "blocks", name), []).append(name)
    assert sum(len(group) == n for group in groups.values()) > 30

    def change(x):
        return x.flip(-1) + 0.5 if x.is_floating_point() else x.flip(-1)

    def change_row(row):
        def edit(x, hook):
            if len(x) != n + 1:  # the same for all rows, as position embeddings are
                shared.append(hook.name)
                return x
            x = x.clone()
            x[row] = change(x[row])
            return x

        return edit

    todo = [*groups.values()]
    for group in todo:
        edits = [(name, change_row(row)) for row, name in enumerate(group)]
        if len(group) == 1:
            edits = [(group[0], lambda x, hook: change(x))]
        try:
            got = model.run_with_hooks(inputs, fwd_hooks=edits)
        except HookError:
            (name,) = group
            assert "vision_encoder" in name or name in ("embed.hook_out", "rotary_emb.hook_in")
            continue
        except InputError:
            assert group == ["embed.hook_in"]  # the tokens themselves
            continue
        if shared:
            todo += [[name] for name in group]  # one at a time
            shared.clear()
            continue
        # Asked for its scores, attention computes them in another way, which rounds otherwise.
        changes = (got - want).abs().amax((1, 2))
        silent += [name for row, name in enumerate(group) if changes[row] < 1e-4]
        assert len(group) == 1 or changes[n] < 1e-5, group
    assert not silent


# 4. Hook points that never fire.


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.hook_patch_embed",
        "vision_encoder.hook_pos_embed",
        "vision_projector.hook_projected",
        "rotary_emb.hook_out",
        "hook_pos_embed",
        "blocks.0.attn.hook_rot_q",
        "vision_encoder.encoder_layers.0.attn.hook_pattern",
    ],
)
def test_dead_hooks_raise(model, one, name):
    for use in (
        lambda: model.run_with_cache(one, names_filter=name),
        lambda: model.run_with_cache(one, names_filter=[name]),
        lambda: model.run_with_hooks(one, fwd_hooks=[(name, lambda x, hook: x)]),
        lambda: model.add_hook(name, lambda x, hook: x),
    ):
        with pytest.raises(HookError, match=r"never fires.*(Use|eager)"):
            use()
    with pytest.warns(mm_lens.MMLensWarning, match="never fire"):
        model.run_with_cache(one, names_filter=lambda n: n == name)
    for sweep in (
        lambda: model.run_with_hooks(one, fwd_hooks=[(lambda n: n == name, lambda x, hook: x)]),
        lambda: model.add_hook(lambda n: n == name, lambda x, hook: x),
    ):
        with (
            pytest.warns(mm_lens.MMLensWarning, match="never fire"),
            pytest.raises(HookError, match="matches no hook point"),
        ):
            sweep()
    _, cache = model.run_with_cache(one, names_filter="hook_embed")
    with pytest.raises(KeyError, match="never fires"):
        cache[name]


@pytest.mark.parametrize("setter", ["set_use_split_qkv_input", "set_use_attn_in"])
def test_forks_that_native_attention_lacks_are_refused(fresh, setter):
    with pytest.raises(NotImplementedError, match="none of this model's attention"):
        getattr(fresh, setter)(True)


# 5. embed.hook_out at image positions is the placeholder's row.


def test_embedding_at_image_positions(model, one):
    names = ["embed.hook_out", "hook_embed", "blocks.0.hook_in"]
    _, cache = model.run_with_cache(one, names_filter=names)
    visual = one.layout.mask("visual")
    assert not torch.equal(cache["embed.hook_out"][visual], cache["hook_embed"][visual])
    assert torch.equal(cache["hook_embed"], cache["blocks.0.hook_in"])

    def at(positions):
        def edit(x, hook):
            x = x.clone()
            x[positions] += 1
            return x

        return edit

    with pytest.raises(HookError, match="hook_embed"):
        model.run_with_hooks(one, fwd_hooks=[("embed.hook_out", at(visual))])
    text = one.layout.mask("text")
    edited = model.run_with_hooks(one, fwd_hooks=[("embed.hook_out", at(text))])
    want = model.run_with_hooks(one, fwd_hooks=[("hook_embed", at(text))])
    assert torch.equal(edited, want)
    assert not torch.equal(edited, model(one))
    assert not torch.equal(
        model.run_with_hooks(one, fwd_hooks=[("hook_embed", at(visual))]), model(one)
    )


def test_decompose_resid_adds_up(model, one):
    _, cache = model.run_with_cache(one)
    parts = cache.decompose_resid(layer=-1, mode="all")
    total = cache["resid_post", model.cfg.n_layers - 1]
    assert (parts.sum(0) - total).abs().max() < 1e-4
    assert (cache["embed.hook_out"] - parts[0]).abs().max() > 0.1  # what it took before


# 6. An edit at hook_resid_mid that returns a new tensor reaches only the MLP branch.


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("how", ["returned", "in place", "in place in a view"])
def test_resid_mid_reaches_the_skip_connection_in_place_only(model, one, how, grad):
    names = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    group = "visual" if "view" in how else "all"
    name = "blocks.1.visual.hook_resid_mid" if "view" in how else names[0]

    def zero(x, hook):
        if how == "returned":
            return x * 0
        with torch.no_grad():
            x.zero_()

    with torch.set_grad_enabled(grad):
        _, before = model.run_with_cache(one, names_filter=names)
        with model.hooks(fwd_hooks=[(name, zero)]):
            _, after = model.run_with_cache(one, names_filter=names)
    skip = after["resid_post", 1] - after["mlp_out", 1]
    want = before["resid_mid", 1] * (0 if how == "in place" else 1)
    assert torch.allclose(skip, want, atol=1e-5)
    edited = one.layout.mask(group)
    change = (after["mlp_out", 1] - before["mlp_out", 1])[edited].abs().amax(-1)
    assert change.min() > 1e-4


# 7. The loss counts image targets.


def test_loss_leaves_out_image_targets_and_padding(family, model, batch):
    logits = model(batch)
    # Markers of a family whose ids follow the vocabulary have no logit.
    predictable = batch.input_ids < model.cfg.d_vocab
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch.input_ids.where(predictable, 0)[:, 1:].flatten(),
        reduction="none",
    ).view(logits.shape[0], -1)
    text = batch.layout.mask("text") & predictable
    counted = text[:, 1:] & batch.attention_mask[:, :-1].bool()
    want = losses[counted].mean()
    assert torch.allclose(model(batch, return_type="loss"), want, atol=1e-6)
    per_token = model(batch, return_type="loss", loss_per_token=True)
    assert torch.allclose(per_token, losses * counted, atol=1e-6)
    assert torch.allclose(model(batch, return_type="both")[1], want, atol=1e-6)
    if predictable.all():
        plain = plain_bridge(family)(batch.input_ids, return_type="loss", **keywords(batch))
        assert abs(plain - want) > 1e-3  # canary
    words = model.prepare("Only words.")
    targets = words.input_ids.masked_fill(words.input_ids >= model.cfg.d_vocab, -100)
    want = torch.nn.functional.cross_entropy(model(words)[0, :-1], targets[0, 1:])
    assert torch.allclose(model(words, return_type="loss"), want, atol=1e-6)


# 9. Tokenizers in memory are reloaded by name.


def test_tokenizer_built_in_memory(family):
    native, processor = FAMILIES[family]()
    processor.tokenizer.name_or_path = ""
    processor.tokenizer.init_kwargs["name_or_path"] = ""
    loaded = mm_lens.load(hf_model=native, processor=processor, check=False)
    want = processor.tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert loaded.to_tokens("abc", prepend_bos=False)[0].tolist() == want


def test_prepared_prompts_have_one_bos_or_none(family, model, one):
    bos = model.tokenizer.bos_token_id
    wanted = {"llava-next": 1, "omnifusion": 0}[family]  # as their published pipelines
    assert (one.input_ids == bos).sum() == wanted
    assert (one.input_ids[0, 0] == bos) == bool(wanted)


# 10. Strings with placeholders, mappings, ragged batches.


def test_strings_with_placeholders_are_refused(model):
    with pytest.raises(InputError, match="prepare"):
        model("<image>\nWhat is it?")


# 13. center_unembed with d_vocab == d_model.


def test_center_unembed_refuses_equal_sizes():
    square = load_tiny(language={"hidden_size": 128, "vocab_size": 128}, check=False)
    with pytest.raises(InputError, match="center_unembed=False"):
        square.enable_compatibility_mode()
