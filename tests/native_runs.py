"""Native models run by plain loops and plain hooks."""

from __future__ import annotations

import torch
from transformers.masking_utils import create_causal_mask


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def layers_of(native):
    return native.model.language_model.layers


def native_states(native, inputs, layer):
    """What enters a block, and the logits."""
    held = []
    hook = layers_of(native)[layer].register_forward_pre_hook(
        lambda m, args, kwargs: held.append((args or tuple(kwargs.values()))[0]), with_kwargs=True
    )
    logits = run_native(native, inputs)
    hook.remove()
    return held[0], logits


def run_native(native, inputs):
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return native(**inputs, position_ids=positions).logits


def native_patched(native, inputs, layer, mask, clean):
    """Logits with `clean` in the place of what enters a block, where `mask` [batch, pos]."""

    def edit(module, args, kwargs):
        name = "hidden_states"
        hidden = args[0] if args else kwargs[name]
        hidden = torch.where(mask[..., None], clean, hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, name: hidden})

    hook = layers_of(native)[layer].register_forward_pre_hook(edit, with_kwargs=True)
    logits = run_native(native, inputs)
    hook.remove()
    return logits


def plain_main_stream(native, inputs, positions):
    """x_{l+1} = MLP(norm2(Attn(norm1(x_l)))) with the model's own masks, and nothing of ours."""
    language = native.model.language_model
    x = native(**inputs, position_ids=positions, output_hidden_states=True).hidden_states[0]
    mask = create_causal_mask(
        config=language.config,
        inputs_embeds=x,
        attention_mask=inputs["attention_mask"],
        past_key_values=None,
        position_ids=positions,
    )
    rotary = language.rotary_emb(x, positions)
    states = [x]
    for layer in language.layers:
        attended, _ = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask
        )
        x = layer.mlp(layer.post_attention_layernorm(attended))
        states.append(x)
    return states
