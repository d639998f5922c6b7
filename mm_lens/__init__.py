"""TransformerLens for vision-language models: hook points, metrics and profiles per modality."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mm_lens.compare import Comparison, compare
from mm_lens.errors import DataError, HookError, InputError, MMLensError, MMLensWarning
from mm_lens.profile import Profile, profile

if TYPE_CHECKING:
    from mm_lens.bridge import VisionLanguageBridge
    from mm_lens.cache import LayoutCache, names
    from mm_lens.conversion import convert
    from mm_lens.inputs import Inputs
    from mm_lens.layout import TokenLayout
    from mm_lens.loading import load

# Imported when first used: torch, transformers and TransformerLens take several seconds, which
# `mm-lens --help` need not wait for.
_HOMES = {
    "Inputs": "inputs",
    "LayoutCache": "cache",
    "TokenLayout": "layout",
    "VisionLanguageBridge": "bridge",
    "convert": "conversion",
    "load": "loading",
    "names": "cache",
}
_MODULES = (
    "ablation",
    "answers",
    "corruptions",
    "attention_maps",
    "datasets",
    "demo",
    "hooks",
    "knockout",
    "layout",
    "lens",
    "metrics",
    "overlay",
    "patching",
    "plots",
    "regions",
    "streams",
    "token_values",
    "validation",
)

__all__ = [
    "Comparison",
    "DataError",
    "HookError",
    "InputError",
    "Inputs",
    "LayoutCache",
    "MMLensError",
    "MMLensWarning",
    "Profile",
    "TokenLayout",
    "VisionLanguageBridge",
    "compare",
    "convert",
    "load",
    "names",
    "profile",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mm_lens.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"mm_lens.{name}")
    raise AttributeError(f"module 'mm_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
