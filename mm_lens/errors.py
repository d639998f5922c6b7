"""The one exception root of mm_lens, and its warning. Messages name the cause and the remedy."""


class MMLensError(Exception):
    """Root of every error mm_lens raises on purpose."""


class InputError(MMLensError, ValueError):
    """The prompt, images or tensors given do not fit the model or each other."""


class HookError(MMLensError, ValueError):
    """A hook point does not exist, cannot fire, or cannot take the edit."""


class DataError(MMLensError, ValueError):
    """A data set or an image could not be found or read, or holds nothing."""


class MMLensWarning(UserWarning):
    """A result that can be used only with the caveat in the message."""
