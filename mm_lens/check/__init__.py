"""What holds of a model on this machine: one suite of checks for every family.

    python -m mm_lens.check --family my_package.tiny:build   # a family of your own, on a tiny model
    mm-lens check llava-hf/llava-v1.6-mistral-7b-hf         # a checkpoint

Each check compares with something that knows nothing of mm_lens: the native model under plain
forward hooks, or a painted picture. The check at load (`mm_lens.model.check`) is the short form.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
