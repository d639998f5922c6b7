"""TransformerLens for vision-language models: hook points, metrics and profiles per modality."""

from mm_lens.bridge import LayoutCache, VisionLanguageBridge, names
from mm_lens.errors import DataError, HookError, InputError, MMLensError, MMLensWarning
from mm_lens.inputs import Inputs
from mm_lens.layout import TokenLayout
from mm_lens.loading import load

__all__ = [
    "DataError",
    "HookError",
    "InputError",
    "Inputs",
    "LayoutCache",
    "MMLensError",
    "MMLensWarning",
    "TokenLayout",
    "VisionLanguageBridge",
    "load",
    "names",
]
