"""Native models whose first block's input is given, for references of attribution."""

from __future__ import annotations

import torch
from conftest import FAMILIES, load_tiny
from tiny import random_image


def metric(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


class Case:
    """Bridge and native model of the same weights, eager, in float64; two rows of one length."""

    def __init__(self, family):
        self.model = load_tiny(family, dtype=torch.float64, attention="eager", check=False)
        self.native = FAMILIES[family]()[0].double()
        self.native.set_attn_implementation("eager")
        images = [random_image(12, 12, 1), random_image(12, 12, 2)]
        self.inputs = self.model.prepare(["Eh?", "No!"], images)
        self.one = self.model.prepare("Eh?", images[0])
        self.layers = self.native.model.language_model.layers

    def run(self, inputs, layer=0, change=None, **options):
        """The native model, what enters a block changed; returns what entered and the output."""
        held = []

        def edit(module, args, kwargs):
            own = args[0] if args else kwargs["hidden_states"]
            new = own if change is None else change(own)
            held.append(new)
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        handle = self.layers[layer].register_forward_pre_hook(edit, with_kwargs=True)
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        try:
            out = self.native(**inputs.native, position_ids=positions, **options)
        finally:
            handle.remove()
        return held[0].detach(), out

    def forward(self, inputs, layer=0):
        """From what enters a block to the metric, for captum."""

        def run(states):
            return metric(self.run(inputs, layer, lambda own: states)[1].logits)

        return run

    def baseline(self, inputs, states):
        """Image tokens at their mean, row by row."""
        mask = inputs.layout.mask("visual")
        out = states.clone()
        for row in range(len(out)):
            out[row, mask[row]] = states[row, mask[row]].mean(0)
        return out
