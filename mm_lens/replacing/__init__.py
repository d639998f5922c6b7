"""Does geometry matter? Put a simpler thing in the place of what blocks do or tokens hold, and look
at the answers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
