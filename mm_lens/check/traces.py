"""What a check must not leave behind: hooks, gradients, another kind of attention."""

from __future__ import annotations

from typing import Any

KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "fwd_hooks",
    "bwd_hooks",
)
"""Where modules of torch and hook points of TransformerLens keep hooks."""


def find_traces(root: Any) -> dict[str, Any]:
    """State of a model beside its weights, by what it is called."""
    found: dict[str, Any] = {"attention": root.config._attn_implementation}
    for name, module in root.named_modules():
        for kind in KINDS:
            if n := len([x for x in _values(module.__dict__.get(kind)) if not _is_own(x)]):
                found[f"{kind.strip('_').replace('_', ' ')} of {name}"] = n
        if module.training:
            found[f"training mode of {name}"] = True
    for name, parameter in root.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = True
    return found


def _values(hooks: Any) -> list[Any]:
    return list(hooks.values()) if isinstance(hooks, dict) else list(hooks or ())


def _is_own(hook: Any) -> bool:
    """Whether a library put it there when it was first needed, to stay: transformers to collect
    hidden states, TransformerLens below its hook points, which list what users attach."""
    module = str(getattr(hook, "__module__", ""))
    return module.startswith(("transformers.", "transformer_lens."))


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first difference, or nothing."""
    names = [*before, *(name for name in after if name not in before)]
    return next((name for name in names if before.get(name) != after.get(name)), "")
