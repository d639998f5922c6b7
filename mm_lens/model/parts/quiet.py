"""Where nothing listens, nothing is called.

TransformerLens wraps every part of a model and, in each forward pass, calls each hook point of it
as a module of its own, looks for offloaded weights around each call, and computes each norm a
second time so that `hook_scale` and `hook_normalized` can fire. With one row on a CPU that is a
third of the pass. `quieten` puts classes on the booted parts that ask first whether anything
listens, and do what TransformerLens does if so. The numbers are the same to the last bit: what is
left out computes nothing that is used.

What remains is the wrapping itself: one call of a module per part, and the blocks' own checks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    LinearBridge,
    NormalizationBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent


class QuietHookPoint(HookPoint):
    """A hook point that hands on what it gets, without a call, if no hook is on it."""

    def __call__(self, x: Any) -> Any:
        """`x`, as the hooks leave it."""
        return super().__call__(x) if _is_hooked(self) else x


class QuietPart(GeneralizedComponent):
    """A part that looks for offloaded weights only if some are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `GeneralizedComponent.__call__`."""
        if hasattr(self._modules.get("_original_component"), "_hf_hook"):
            return super().__call__(*args, **kwargs)
        return nn.Module.__call__(self, *args, **kwargs)


class QuietLinear(QuietPart, LinearBridge):
    """A linear map that is called as it is if no hook is at its input or output."""

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `LinearBridge.__call__`."""
        own = self.__dict__
        parts = own["_modules"]
        listens = any(map(_is_hooked, (parts["hook_in"], parts["hook_out"], self)))
        if listens or "forward" in own:
            return super().__call__(input, *args, **kwargs)
        own["_suppress_next_hook_in"], own["_fired_hook_out"] = False, True  # as its forward does
        return parts["_original_component"](input, *args, **kwargs)


class QuietNorm(QuietPart, NormalizationBridge):
    """A norm that is computed once if no hook asks for its scale."""

    def _hf_autograd_forward_with_hooks(self, x: Tensor) -> Tensor:
        if _is_hooked(self.hook_scale) or _is_hooked(self.hook_normalized):
            return super()._hf_autograd_forward_with_hooks(x)
        native = self.original_component
        assert native is not None, "set by TransformerLens when the bridge is built"
        normed: Tensor = native(x)
        return normed.to(x.dtype)


class QuietBlock(QuietPart, BlockBridge):
    """A block that reads the signature of what it wraps once, not in each pass."""

    def _filter_kwargs_for_forward(
        self, kwargs: dict[str, Any], num_positional_args: int = 0
    ) -> dict[str, Any]:
        wrapped: Any = self.original_component
        native = getattr(wrapped.forward, "__func__", None)
        if native is not None and _takes_any(native):
            return kwargs
        return super()._filter_kwargs_for_forward(kwargs, num_positional_args)


QUIET = (QuietLinear, QuietNorm, QuietBlock, QuietPart)
"""The first whose base a part is of is put on it."""


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
    quiet = next(c for c in QUIET if issubclass(part, c.__bases__[-1]))
    return type(part.__name__, (quiet, part), {"__module__": part.__module__})


@cache
def _takes_any(forward: Callable[..., Any]) -> bool:
    return any(
        p.kind == inspect.Parameter.VAR_KEYWORD
        for p in inspect.signature(forward).parameters.values()
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether torch would call anything around the forward of `module`."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_backward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_pre_hooks"]
    )
