"""Questions about noise, and what the native model makes of them when plain hooks edit it."""

from __future__ import annotations

import torch
from native_runs import layers_of, run_native
from tiny import random_image

from mm_lens.causal.answers import Answers

OPTIONS = ["a", "b", "c"]
TOKENS = [40, 41, 42]  # words are several tokens here, one for each letter


def ask(model, seeds, text="Eh?"):
    """Pairs of inputs and answers, each about noise of its own."""
    found = []
    for seed in seeds:
        inputs = model.prepare(text, random_image(31, 57, seed))
        found.append((inputs, Answers(model, inputs, OPTIONS, OPTIONS[seed % 3], tokens=TOKENS)))
    return found


def run_replaced(native, inputs, edits, group="visual", run=run_native):
    """Logits of a native model in which `edits[layer](before, after)` is what leaves a layer."""
    mask = inputs.layout.mask(group)[..., None]
    handles, before = [], {}
    for layer, edit in edits.items():

        def keep(m, args, kwargs, layer=layer):
            before[layer] = (args or tuple(kwargs.values()))[0]

        def put(m, args, out, layer=layer, edit=edit):
            after = out[0] if isinstance(out, tuple) else out
            new = torch.where(mask, edit(before[layer], after), after)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        block = layers_of(native)[layer]
        handles += [
            block.register_forward_pre_hook(keep, with_kwargs=True),
            block.register_forward_hook(put),
        ]
    try:
        return run(native, inputs)
    finally:
        for handle in handles:
            handle.remove()
