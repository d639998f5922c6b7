"""What attention heads look at: scores, sinks, and attention taken from sinks to the picture."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
