"""Findings of others as one command each: claim, statistic stated beforehand, interval, verdict."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
