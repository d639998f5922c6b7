"""Attention and states of the native model."""

from __future__ import annotations

import torch
from conftest import FAMILIES
from tiny import random_image


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
