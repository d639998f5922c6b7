"""To be imported before transformers: torchvision, from a folder of its own, where it is.

`make` puts it there without its dependencies. A build for CUDA beside a torch for the CPU does not
load its compiled operators, and then importing transformers fails for everything else too. Only its
Python transforms are used here, so operators that are missing are declared.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

FOLDER = Path(sys.prefix) / "torchvision"
_DECLARED: list[torch.library.Library] = []
"""A library that nobody holds is taken back."""


def offer() -> bool:
    """Make torchvision importable if it is there; tells whether it is."""
    if importlib.util.find_spec("torchvision") is None:
        if not FOLDER.is_dir():
            return False
        sys.path.append(str(FOLDER))
        importlib.invalidate_caches()
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        importlib.import_module("torchvision")
    return True


AVAILABLE = offer()
