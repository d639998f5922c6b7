"""Every hook of a model by plain forward hooks on the native model, which know nothing of ours."""

from __future__ import annotations

import torch


def places(native):
    """Module and side ("in" or "out") of every hook, by its name in TransformerLens."""
    found = {}
    for b, layer in enumerate(native.model.language_model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        found |= {
            f"blocks.{b}.hook_resid_pre": (layer, "in"),
            f"blocks.{b}.ln1.hook_out": (layer.input_layernorm, "out"),
            f"blocks.{b}.attn.hook_q": (attention.q_proj, "out"),
            f"blocks.{b}.attn.hook_k": (attention.k_proj, "out"),
            f"blocks.{b}.attn.hook_v": (attention.v_proj, "out"),
            f"blocks.{b}.attn.hook_z": (attention.o_proj, "in"),
            f"blocks.{b}.hook_attn_out": (attention, "out"),
            f"blocks.{b}.hook_resid_mid": (layer.post_attention_layernorm, "in"),
            f"blocks.{b}.ln2.hook_out": (layer.post_attention_layernorm, "out"),
            f"blocks.{b}.mlp.hook_pre": (mlp.gate_proj, "out"),
            f"blocks.{b}.mlp.hook_post": (mlp.down_proj, "in"),
            f"blocks.{b}.hook_mlp_out": (mlp, "out"),
            f"blocks.{b}.hook_resid_post": (layer, "out"),
        }
    found["ln_final.hook_out"] = (native.model.language_model.norm, "out")
    tower = native.model.vision_tower
    for b, layer in enumerate(getattr(tower, "vision_model", tower).encoder.layers):
        found[f"vision_encoder.encoder_layers.{b}.hook_in"] = (layer, "in")
        found[f"vision_encoder.encoder_layers.{b}.hook_out"] = (layer, "out")
    found["vision_projector.hook_in"] = (native.model.multi_modal_projector, "in")
    found["vision_projector.hook_out"] = (native.model.multi_modal_projector, "out")
    return found


@torch.no_grad()
def run(native, inputs):
    """What the native model has at every place, [batch, pos, width] or [tile, patch, width]."""
    held, handles = {}, []
    for name, (module, side) in places(native).items():
        if side == "in":

            def keep(m, args, kwargs, name=name):
                held[name] = args[0] if args else kwargs["hidden_states"]

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        else:

            def keep_out(m, args, out, name=name):
                held[name] = out[0] if isinstance(out, tuple) else out

            handles.append(module.register_forward_hook(keep_out))
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    native(**inputs, position_ids=positions)
    for handle in handles:
        handle.remove()
    return held
