"""How often a model answers right: by protocol, with intervals, with the image and without."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
