"""What the answer depends on: patching, knock-out and ablation, by modality and by region."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
