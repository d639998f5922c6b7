"""TransformerLens's look for hook points, without the places where there are none.

It looks at every attribute of every module, hook points included, twice for each bridge: a tenth of
what the tests of models compute. Here functions of a class, tensors and what lies within a hook
point are not looked at. tests/test_quick_boot.py holds that the same hook points are found, under
the same names and in the same order.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.transformer_bridge import TransformerBridge

thorough = TransformerBridge._scan_existing_hooks
ORIGINALS = ("original_component", "_original_component", "original_model")
WEIGHTS = {f"W_{x}" for x in ("V", "O", "Q", "K", "in", "gate", "out")} | {"OV", "QK"}
WEIGHTS |= {f"b_{x}" for x in ("V", "O", "Q", "K", "in", "out")}


@cache
def _of_class(kind: type) -> frozenset[str]:
    """Attributes of a class that may be hook points: properties, but no function."""
    return frozenset(
        name
        for name in dir(kind)
        if not inspect.isroutine(inspect.getattr_static(kind, name, None))
    )


def scan(self: Any, module: nn.Module, prefix: str = "") -> None:
    """In place of `TransformerBridge._scan_existing_hooks`."""
    seen: set[int] = set()
    named = {id(point) for point in self._hook_registry.values() if point.name is not None}

    def enter(name: str, point: HookPoint) -> None:
        if id(point) not in named:
            point.name = name
            named.add(id(point))
        self._hook_registry[name] = point

    def look(mod: nn.Module, path: str) -> None:
        if id(mod) in seen:
            return
        seen.add(id(mod))
        start = f"{path}." if path else ""
        if not isinstance(mod, HookPoint):
            found = mod.get_hooks() if callable(getattr(mod, "get_hooks", None)) else None
            for name, point in (found if isinstance(found, dict) else {}).items():
                enter(start + name, point)
            for name in sorted({*_of_class(type(mod)), *mod.__dict__, *mod._modules}):
                if name[0] == "_" or name[0].isdigit() or name in WEIGHTS or name in ORIGINALS:
                    continue
                try:
                    value = getattr(mod, name)
                except (AttributeError, NameError, RuntimeError, TypeError):
                    continue
                if isinstance(value, HookPoint):
                    enter(start + name, value)
        for name, child in mod.named_children():
            if name not in ORIGINALS:
                look(child, start + name)

    look(module, prefix)


TransformerBridge._scan_existing_hooks = scan  # type: ignore[method-assign]
