"""The published projection of OmniFusion: a whole pickled module, read without running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mm_lens.checkpoints import pickles
from mm_lens.errors import MMLensError

# Inert stand-ins may take the place of torch's modules and of the classes of upstream's models.py.
STAND_INS = (
    r"(models|__main__)\.\w+|torch\.nn\.modules\.\w+\.\w+|torch\.nn\.functional\.(relu|gelu)"
    r"|torch\._C\._nn\.gelu"
)
_LAYER = (
    *(f"self_attn.{name}" for name in ("in_proj_weight", "in_proj_bias")),
    *(f"self_attn.out_proj.{name}" for name in ("weight", "bias")),
    *(
        f"{part}.{name}"
        for part in ("linear1", "linear2", "norm1", "norm2")
        for name in ("weight", "bias")
    ),
)
NAMES = (*(f"transformer_layer.{name}" for name in _LAYER), "linear.weight", "linear.bias")
"""What the module of OmniFusion 1.1 holds."""

PUBLISHED_HEADS = 4
_EPS = 1e-5  # of LayerNorm, as torch has it


@dataclass(frozen=True)
class Projection:
    """The projection's tensors, and what of its structure they do not tell."""

    tensors: dict[str, Tensor]
    num_heads: int
    n_tokens: int | None
    """Image tokens it was made for; None if the file does not say."""

    @property
    def d_vision(self) -> int:
        """Width of the features that go in."""
        return int(self.tensors["linear.weight"].shape[1])

    @property
    def d_feedforward(self) -> int:
        """Width of the encoder layer's feed-forward part."""
        return int(self.tensors["transformer_layer.linear1.weight"].shape[0])


def read_projection(path: Path) -> Projection:
    """Read `projection.pt`: the pickled module, or a state dict of it.

    A state dict does not tell the number of attention heads: it is taken to be the published 4.

    Raises:
        MMLensError: the file is missing, damaged or unsafe; or it holds another structure than
            one post-norm transformer encoder layer and a linear map.
    """
    found = pickles.read(path, STAND_INS)
    if isinstance(found, dict):
        tensors = pickles.read_tensors(path)
        _check_names(path, "a state dict", tensors)
        return Projection(tensors, PUBLISHED_HEADS, None)
    if not isinstance(found, pickles.StandIn):
        raise MMLensError(f"{path} holds a {type(found).__name__}, not a projection.")
    tensors = pickles.module_tensors(found)
    _check_names(path, pickles.name_of(type(found)), tensors)
    for name, tensor in tensors.items():
        pickles.check_dense(path, name, tensor)
    layer = found.state["_modules"]["transformer_layer"]
    num_heads = _check_structure(path, layer)
    n_tokens = found.state.get("n_embeddings")
    return Projection(tensors, num_heads, n_tokens if type(n_tokens) is int else None)


def _check_names(path: Path, what: str, tensors: dict[str, Tensor]) -> None:
    if set(tensors) == set(NAMES) and all(t.ndim > 0 for t in tensors.values()):
        return
    listed = ", ".join(sorted(set(tensors))[:6]) or "nothing"
    raise MMLensError(
        f"{path} holds {what} with {listed}, …: not the one transformer encoder layer and linear "
        "map of OmniFusion 1.1 with one encoder. If it is the variant with two encoders (CLIP-L "
        "and DINOv2): its public description does not fix how the features of all layers are "
        "combined, so it cannot be converted without guessing. See docs/omnifusion.md."
    )


def _check_structure(path: Path, layer: pickles.StandIn) -> int:
    """Compare what shapes do not tell with OmniFusion 1.1; returns the number of heads."""
    state, modules = layer.state, layer.state["_modules"]
    attention: dict[str, Any] = modules["self_attn"].state
    activation = state.get("activation", modules.get("activation"))
    # Given as a function, a module, or (torch before 1.8 left it out) not at all.
    kind = activation if isinstance(activation, type) else type(activation)
    expected = {
        "norm_first": (state.get("norm_first", False), False),
        "activation": (kind.__name__.lower() if activation is not None else "relu", "relu"),
        "batch_first": (attention.get("batch_first", False), True),
        "add_zero_attn": (attention.get("add_zero_attn", False), False),
        "norm1.eps": (modules["norm1"].state.get("eps"), _EPS),
        "norm2.eps": (modules["norm2"].state.get("eps"), _EPS),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise MMLensError(
                f"{path}: the transformer layer has {name} = {found!r}, OmniFusion 1.1 has "
                f"{wanted!r}. A projection of another structure cannot be converted."
            )
    num_heads = attention.get("num_heads")
    width = modules["norm1"].state["_parameters"]["weight"].shape[0]
    if type(num_heads) is not int or num_heads < 1 or width % num_heads:
        raise MMLensError(
            f"{path}: {num_heads!r} attention heads do not divide a width of {width}. "
            "The file is damaged: fetch it again."
        )
    return num_heads
