"""A vision-language model as a TransformerBridge with hook points per modality."""

from typing import Any

import lazy_loader

from mm_lens.errors import explain_import

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name; imports transformers, which may not be possible."""
    try:
        return _find(name)
    except (ImportError, RuntimeError) as error:
        explained = explain_import(error)
        if explained is None:
            raise
        raise explained from error
