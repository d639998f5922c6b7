"""A bridge and the native model of the same weights, which plain loops run for comparison."""

from __future__ import annotations

import torch
from tiny import random_image, tiny_llava_next
from tiny_omnifusion import _build as omnifusion
from tiny_omnifusion import tiny_omnifusion
from transformers import MistralConfig

import mm_lens


class Case:
    """One family: bridge and native model of the same weights, clean and corrupted inputs.

    In float64, so that nothing depends on how a processor rounds (fixture `no_float32`), but
    for tools that know float32 alone.
    """

    def __init__(self, family, layers=2, kv_heads=1, attention="eager", dtype=torch.float64):
        language = {
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": kv_heads,
        }
        if family == "llava-next":
            native, processor = tiny_llava_next(language=language)
            model, _ = tiny_llava_next(language=language)
        else:
            config = tiny_omnifusion()[0].config.text_config.to_dict() | language
            config.pop("head_dim", None)
            build = omnifusion.__wrapped__
            (native, processor), (model, _) = (
                build(0, (("text_config", MistralConfig(**config)),)) for _ in range(2)
            )
        native.set_attn_implementation("eager")
        self.native = native.to(dtype)
        self.model = mm_lens.load(
            hf_model=model.to(dtype), processor=processor, attention=attention, check=False
        )
        self.clean, self.corrupted = (
            self.model.prepare("Eh", random_image(8, 12, seed)) for seed in (0, 1)
        )
        assert torch.equal(self.clean.input_ids, self.corrupted.input_ids)
        self.blocks = native.model.language_model.layers
        self.n_layers, self.n_heads, self.n_kv = layers, 2, kv_heads
        self.scale = self.logits(self.corrupted).abs().max().item()
        # Some tools keep their results in float32; where all is, it has ten times the room.
        self.bound = (1e-6 if dtype == torch.float64 else 1e-5) * self.scale

    def logits(self, inputs, *hooks, grad=False, **options):
        """Native logits under (module, "in" or "out", function) hooks."""
        handles = []
        for module, side, change in hooks:
            if side == "in":

                def pre(m, args, kwargs, change=change):
                    if args:
                        new = change(args[0])
                        return None if new is None else ((new, *args[1:]), kwargs)
                    new = change(kwargs["hidden_states"])
                    return None if new is None else (args, {**kwargs, "hidden_states": new})

                handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
            else:

                def post(m, args, out, change=change):
                    whole = isinstance(out, tuple)
                    new = change(out[0] if whole else out)
                    return None if new is None else ((new, *out[1:]) if whole else new)

                handles.append(module.register_forward_hook(post))
        with torch.set_grad_enabled(grad):
            out = self.native(**inputs, **options)
        for handle in handles:
            handle.remove()
        return out if options else out.logits

    def read(self, inputs, *places):
        """What the native model has at (module, side)."""
        held = {}
        self.logits(
            inputs,
            *(
                (m, side, lambda x, i=i: held.__setitem__(i, x))
                for i, (m, side) in enumerate(places)
            ),
        )
        return [held[i] for i in range(len(places))]

    def patched(self, place, mask):
        """Metric with the clean run's values put in at a place where `mask` is set."""
        clean = self.read(self.clean, place)[0]
        change = (*place, lambda x: torch.where(mask.expand_as(x), clean, x))
        return metric(self.logits(self.corrupted, change))

    def patched_pattern(self, layer, head, mask):
        """Metric with a head's attention weights of the clean run where `mask` [dest, src]."""
        attention = self.blocks[layer].self_attn
        both = [
            self.logits(x, output_attentions=True).attentions[layer][:, head]
            for x in (self.clean, self.corrupted)
        ]
        pattern = torch.where(mask, *both)
        values = self.read(self.corrupted, (attention.v_proj, "out"))[0]
        d = values.shape[-1] // self.n_kv
        kv = head * self.n_kv // self.n_heads
        z = pattern @ values[..., kv * d : (kv + 1) * d]

        def change(x):
            x = x.clone()
            x[..., head * d : (head + 1) * d] = z
            return x

        return metric(self.logits(self.corrupted, (attention.o_proj, "in", change)))

    def cell(self, name, index):
        """The value of one cell of a sweep of `transformer_lens.patching`."""
        block = self.blocks[index[0]]
        n = self.corrupted.input_ids.shape[1]
        if "pattern" in name:
            mask = torch.zeros(n, n, dtype=torch.bool)
            dest = index[2] if len(index) > 2 else slice(None)
            mask[dest, index[3] if len(index) > 3 else slice(None)] = True
            return self.patched_pattern(index[0], index[1], mask)
        attention = block.self_attn
        if name == "resid_mid":  # TransformerLens edits in place: the skip connection has it too
            place = (block.post_attention_layernorm, "in")
            clean, own = (self.read(x, place)[0] for x in (self.clean, self.corrupted))
            change = torch.zeros_like(own)
            change[:, index[1]] = (clean - own)[:, index[1]]
            return metric(self.logits(self.corrupted, (attention, "out", lambda x: x + change)))
        kind = name.removeprefix("attn_head_").removesuffix("_by_pos").removesuffix("_all_pos")
        place = {
            "resid_pre": (block, "in"),
            "attn_out": (attention, "out"),
            "mlp_out": (block.mlp, "out"),
            "out": (attention.o_proj, "in"),
            "q": (attention.q_proj, "out"),
            "k": (attention.k_proj, "out"),
            "v": (attention.v_proj, "out"),
        }[kind]
        width = self.read(self.corrupted, place)[0].shape[-1]
        mask = torch.zeros(1, n, width, dtype=torch.bool)
        heads = {"out": self.n_heads, "q": self.n_heads, "k": self.n_kv, "v": self.n_kv}.get(kind)
        if heads is None:
            mask[:, index[1]] = True
        else:
            d = width // heads
            where = index[1] if name.endswith("by_pos") else slice(None)
            mask[:, where, index[-1] * d : (index[-1] + 1) * d] = True
        return self.patched(place, mask)

    def cache(self, inputs):
        return self.model.run_with_cache(inputs)[1]

    def close(self, got, want):
        """As near as floating point allows, in parts of the largest logit."""
        assert (torch.as_tensor(got) - torch.as_tensor(want)).abs().max() <= self.bound


def metric(logits):
    return logits[0, -1, 3] - logits[0, -1, 5]
