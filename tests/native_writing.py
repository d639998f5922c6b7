"""Greedy writing by the native model without a cache: the whole text again for each new token."""

from __future__ import annotations

import contextlib

import torch


@torch.no_grad()
def native_greedy(native, inputs, steps, under=None, never=90):
    """Tokens and logits that the native model writes, [batch, steps(, d_vocab)].

    Args:
        native: a model of transformers.
        inputs: what is gone on from.
        steps: tokens to write.
        under: from the length of the text to a context in which it is run.
        never: tokens from this one on are not written: placeholders, which no whole pass takes.
    """
    length = inputs.input_ids.shape[1]
    tokens, logits = inputs.input_ids, []
    for step in range(steps):
        given = {
            name: torch.nn.functional.pad(x, (0, step), value=name == "attention_mask")
            if name != "input_ids" and x.shape == inputs.input_ids.shape
            else x
            for name, x in inputs.native.items()
        }
        given["input_ids"] = tokens
        if not hasattr(native.model, "rope_deltas"):
            mask = given["attention_mask"]
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with under(length + step) if under else contextlib.nullcontext():
            logits.append(native(**given).logits[:, -1])
        tokens = torch.cat([tokens, logits[-1][:, :never].argmax(-1, keepdim=True)], 1)
    return tokens[:, length:], torch.stack(logits, 1)


@contextlib.contextmanager
def edges_cut(native, edges, layers, heads=None):
    """Edges [batch, query, key] taken out of the 4-D masks that the blocks get, for some heads."""
    n = native.config.get_text_config().num_attention_heads
    chosen = torch.ones(n, dtype=torch.bool)
    if heads is not None:
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[heads] = True
    lost = edges[:, None] & chosen[:, None, None]

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"]
        low = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask.expand(lost.shape).masked_fill(lost, low)}

    blocks = native.model.language_model.layers
    handles = [
        blocks[k].self_attn.register_forward_pre_hook(edit, with_kwargs=True) for k in layers
    ]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def block_edited(native, layer, edit):
    """`edit(states) -> states` on what leaves a block."""

    def hook(module, args, out):
        whole = isinstance(out, tuple)
        new = edit(out[0] if whole else out)
        return (new, *out[1:]) if whole else new

    handle = native.model.language_model.layers[layer].register_forward_hook(hook)
    yield
    handle.remove()
