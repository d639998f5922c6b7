"""Where nothing listens, nothing is called.

TransformerLens wraps every part of a model and, in each forward pass, calls each hook point of it
as a module of its own, looks for offloaded weights around each call, has norms hand what they get
to a block that may want it, and computes each norm a second time so that `hook_scale` and
`hook_normalized` can fire. With one row on a CPU that is a third of the pass. `quieten` puts
classes on the booted parts that ask first whether anything listens: if so they do what
TransformerLens does, else they call what is wrapped. The numbers are the same to the last bit: what
is left out computes nothing that is used.

What remains is asking, and what the bridge does around the whole model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    CLIPVisionEncoderBridge,
    GatedMLPBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    UnembeddingBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

ONLY_HOOKS = "_only_hooks"
"""A class of parts has this attribute True if its `forward` calls what it wraps, fires its hook
points around that, and does nothing else."""
SAME_FORWARD = "_mm_lens_forward"
"""A part keeps a `forward` of its own here, too, if it does as that of its class where no hook is
on the part."""
_ONLY_HOOKS = {
    kind.forward
    for kind in (
        GeneralizedComponent,
        AttentionBridge,
        MLPBridge,
        GatedMLPBridge,
        CLIPVisionEncoderBridge,
        VisionProjectionBridge,
        UnembeddingBridge,
    )
}


class QuietHookPoint(HookPoint):
    """A hook point that hands on what it gets, without a call, if no hook is on it."""

    def __call__(self, x: Any) -> Any:
        """`x`, as the hooks leave it."""
        return super().__call__(x) if _listens(self) else x


class QuietPart(GeneralizedComponent):
    """A part that looks for offloaded weights only if some are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `GeneralizedComponent.__call__`."""
        if hasattr(self._modules.get("_original_component"), "_hf_hook"):
            return super().__call__(*args, **kwargs)
        return nn.Module.__call__(self, *args, **kwargs)


class QuietWrapper(QuietPart):
    """A part that only fires hook points: without hooks on them it is what it wraps."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `GeneralizedComponent.__call__`."""
        own = self.__dict__
        parts = own["_modules"]
        points = [*own["_hook_registry"].values()]
        for name in ("in", "input", "out"):  # of an MLP, which fires these if nothing else does
            if name in parts:
                points += parts[name].__dict__["_hook_registry"].values()
        if (
            own.get("forward") is not own.get(SAME_FORWARD)
            or own.get("name") is None  # an MLP without a module of its own: it refuses the call
            or _listens(self, *points)
            or own.get("_use_processed_weights")
            or own.get("requires_relative_position_bias")
        ):
            return super().__call__(*args, **kwargs)
        return parts["_original_component"](*args, **kwargs)


class QuietLinear(QuietPart, LinearBridge):
    """A linear map that is called as it is if no hook is at its input or output."""

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `LinearBridge.__call__`."""
        own = self.__dict__
        parts = own["_modules"]
        if "forward" in own or _listens(self, parts["hook_in"], parts["hook_out"]):
            return super().__call__(input, *args, **kwargs)
        own["_suppress_next_hook_in"], own["_fired_hook_out"] = False, True  # as its forward does
        return parts["_original_component"](input, *args, **kwargs)


class QuietNorm(QuietPart, NormalizationBridge):
    """A norm that is computed once if no hook asks for its scale."""

    def __call__(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """As `NormalizationBridge.__call__`."""
        own = self.__dict__
        if (
            "forward" in own
            or _listens(self, *own["_hook_registry"].values())
            or not (own.get("use_native_layernorm_autograd") or self._is_folded())
        ):
            return super().__call__(hidden_states, **kwargs)
        return self._native(hidden_states)

    def _hf_autograd_forward_with_hooks(self, x: Tensor) -> Tensor:
        if _listens(self.hook_scale, self.hook_normalized):
            return super()._hf_autograd_forward_with_hooks(x)
        return self._native(x)

    def _native(self, x: Tensor) -> Tensor:
        normed: Tensor = self.__dict__["_modules"]["_original_component"](x)
        return normed if normed.dtype == x.dtype else normed.to(x.dtype)

    def _is_folded(self) -> bool:
        return bool(getattr(self.config, "layer_norm_folding", False))


class QuietBlock(QuietPart, BlockBridge):
    """A block that asks the parts of it for what they get only if somebody wants to have it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `BlockBridge.__call__`."""
        own = self.__dict__
        parts = own["_modules"]
        native = parts["_original_component"]
        if (
            own.get("_stop_at_layer_idx") is not None
            or own.get("_start_at_layer_idx") is not None
            or "forward" in own
            or _listens(self, parts["hook_in"])
            or "_hf_hook" in native.__dict__
            or self._captures()
            or self._is_standalone_hidden_state_call(args, kwargs)
        ):
            return super().__call__(*args, **kwargs)
        if own["_capture_hooks_wired"]:
            self._teardown_capture_hooks()
        output = native(*args, **self._filter_kwargs_for_forward(kwargs, len(args)))
        return self._apply_output_hook(output) if _listens(parts["hook_out"]) else output

    def _captures(self) -> bool:
        """Whether what its norms get is wanted: for `hook_mlp_in`, or split inputs of attention."""
        attention = self.__dict__["_modules"].get("attn")
        config: Any = None if attention is None else attention.__dict__.get("config")
        splits = getattr(config, "use_split_qkv_input", False)
        return bool(self._read_use_hook_mlp_in() or splits or getattr(config, "use_attn_in", False))

    def _maybe_wire_capture_hooks(self) -> None:
        if self._captures():
            super()._maybe_wire_capture_hooks()

    def _filter_kwargs_for_forward(
        self, kwargs: dict[str, Any], num_positional_args: int = 0
    ) -> dict[str, Any]:
        wrapped: Any = self.original_component
        native = getattr(wrapped.forward, "__func__", None)
        if native is not None and _takes_any(native):
            return kwargs
        return super()._filter_kwargs_for_forward(kwargs, num_positional_args)


QUIET = (QuietLinear, QuietNorm, QuietBlock)
"""A part that runs as the base of one of these gets the class."""


def quieten(bridge: nn.Module) -> None:
    """Put the classes above on the parts of a booted bridge."""
    for part in bridge.modules():
        if type(part) is HookPoint:
            _put(part, QuietHookPoint)
        elif isinstance(part, GeneralizedComponent) and not isinstance(part, QuietPart):
            kind: Any = type(part)
            _put(part, _quiet(kind))


def restore(bridge: nn.Module) -> None:
    """Put TransformerLens's own classes back."""
    for part in bridge.modules():
        if type(part) is QuietHookPoint:
            _put(part, HookPoint)
        elif isinstance(part, QuietPart):
            _put(part, next(c for c in type(part).__mro__ if not issubclass(c, QuietPart)))


def _put(part: Any, kind: type) -> None:
    part.__class__ = kind


@cache
def _quiet(part: Any) -> type:
    """The class of a part with a quiet one before it, under the name it had."""
    alike = (c for c in QUIET if _runs_as(part, c.__bases__[-1]))
    only_hooks = part.forward in _ONLY_HOOKS or vars(part).get(ONLY_HOOKS, False)
    quiet = next(alike, QuietWrapper if only_hooks else QuietPart)
    return type(part.__name__, (quiet, part), {"__module__": part.__module__})


def _runs_as(part: type, base: type) -> bool:
    """Whether a class of parts overrides no method of one that it is derived from."""
    methods = (name for name, member in vars(base).items() if inspect.isfunction(member))
    return issubclass(part, base) and all(
        getattr(part, name) is getattr(base, name) for name in methods if name != "__init__"
    )


@cache
def _takes_any(forward: Callable[..., Any]) -> bool:
    return any(
        p.kind == inspect.Parameter.VAR_KEYWORD
        for p in inspect.signature(forward).parameters.values()
    )


def _listens(*modules: nn.Module) -> bool:
    """Whether torch would call anything around the forward of one of these."""
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        ):
            return True
    return False
