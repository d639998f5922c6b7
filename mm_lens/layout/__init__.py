"""What every position of a sequence is, and which positions a name, a box or a region means."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
