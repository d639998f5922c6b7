"""The native model under plain forward hooks, which know nothing of bridges and views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs

Place = tuple[str, Literal["in", "out"]]
"""Path of a native module, and which of its tensors is meant."""

Change = Callable[[Tensor], Tensor | None]


def find_places(model: VisionLanguageBridge, layer: int) -> dict[str, Place]:
    """Where each hook of a block lies in the native model, by its short name.

    Only the names that modules have there are taken from the bridge.
    """
    block = model.blocks[layer]
    root = f"{path_of(model, 'blocks')}.{layer}"

    def path(*parts: str) -> str | None:
        found, names = block, [root]
        for part in parts:
            found = getattr(found, "submodules", {}).get(part)
            if found is None or found.original_component is None:
                return None
            names.append(str(found.name))
        return ".".join(names)

    after = {"attn_out": ("ln1_post", "attn"), "mlp_out": ("ln2_post", "mlp")}
    wanted: dict[str, tuple[str | None, Literal["in", "out"]]] = {
        "resid_pre": (root, "in"),
        "resid_mid": (path("ln2"), "in"),
        "resid_post": (root, "out"),
        **{name: (path(a) or path(b), "out") for name, (a, b) in after.items()},
        **{f"attn.{x}": (path("attn", x), "out") for x in "qkv"},
        "attn.z": (path("attn", "o"), "in"),
        "mlp.pre": (path("mlp", "gate"), "out"),
        "mlp.post": (path("mlp", "out"), "in"),
    }
    return {name: (where, side) for name, (where, side) in wanted.items() if where is not None}


def path_of(model: VisionLanguageBridge, component: str) -> str:
    """Where a component of the bridge lies in the native model."""
    mapping: Any = model.adapter.component_mapping
    return str(mapping[component].name)


@contextmanager
def hooked(native: Any, changes: Sequence[tuple[Place, Change]]) -> Iterator[None]:
    """Inside, each function sees the tensor of its place, and what it returns takes its place."""
    with ExitStack() as stack:
        for (where, side), change in changes:
            module = native.get_submodule(where)
            if side == "in":

                def before(m: Any, args: Any, kwargs: Any, change: Change = change) -> Any:
                    name = "hidden_states" if "hidden_states" in kwargs else None
                    new = change(args[0] if name is None else kwargs[name])
                    if new is None:
                        return None
                    return ((new, *args[1:]), kwargs) if name is None else (
                        args, {**kwargs, name: new},
                    )  # fmt: skip

                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            else:

                def behind(m: Any, args: Any, out: Any, change: Change = change) -> Any:
                    whole = isinstance(out, tuple)
                    new = change(out[0] if whole else out)
                    return None if new is None else (new, *out[1:]) if whole else new

                handle = module.register_forward_hook(behind)
            stack.callback(handle.remove)
        yield


def run(
    native: Any, inputs: Inputs, changes: Sequence[tuple[Place, Change]] = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the native model, padded rows at the positions that they have alone."""
    kwargs = inputs.native
    mask = kwargs.get("attention_mask")
    if mask is not None and not bool(mask.all()) and not _knows_padding(native):
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with hooked(native, changes):
        logits: Tensor = native(**kwargs).logits
    return logits


def _knows_padding(native: Any) -> bool:
    """Whether the model itself makes positions of several axes, from its mask."""
    text = native.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    return isinstance(rope, Mapping) and "mrope_section" in rope


class Stopped(Exception):
    """The part of the forward pass that was wanted is over."""


@torch.no_grad()
def embed(native: Any, inputs: Inputs) -> Float[Tensor, "batch pos d_model"]:
    """What enters the language model."""
    held: list[Tensor] = []

    def stop(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        held.append(kwargs["inputs_embeds"])
        raise Stopped

    handle = native.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        native(**inputs.native)
    except Stopped:
        pass
    finally:
        handle.remove()
    return held[0]
