"""The one exception root of mm_lens, and its warning. Messages name the cause and the remedy."""


class MMLensError(Exception):
    """Root of every error mm_lens raises on purpose."""

    def __str__(self) -> str:
        """The message, safe to print: names in it may come from a file that somebody else made."""
        return show_safely(super().__str__())


class InputError(MMLensError, ValueError):
    """The prompt, images or tensors given do not fit the model or each other."""


class HookError(MMLensError, ValueError):
    """A hook point does not exist, cannot fire, or cannot take the edit."""


class UnknownHookError(HookError, KeyError):
    """A hook point does not exist: a `KeyError`, too, as TransformerLens raises it."""

    def __str__(self) -> str:
        """The message, which a `KeyError` would put into quotes."""
        return show_safely(str(self.args[0]))


class DataError(MMLensError, ValueError):
    """A data set or an image could not be found or read, or holds nothing."""


class DamageError(DataError):
    """A file that mm_lens itself has written is damaged: there is nothing to resume from."""


class MMLensWarning(UserWarning):
    """A result that can be used only with the caveat in the message."""


def show_safely(text: str) -> str:
    """Text with escapes for what could steer a terminal or cannot be encoded."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def explain_import(error: BaseException) -> MMLensError | None:
    """The error to raise where transformers cannot be imported for a torchvision of another torch.

    transformers names a class of its own then, and hides the cause; None of any other error.
    """
    cause: BaseException | None = error
    while cause is not None:
        if "operator torchvision::" in str(cause):
            return MMLensError(
                "The torchvision that is installed was built for another torch, and transformers "
                f"cannot be imported beside it ({cause}). Install the two together, or take "
                "torchvision away: pip uninstall torchvision."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so in the message alone, but for GPUs."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
        or any(sign in text for sign in _NO_MEMORY)
    )


_NO_MEMORY = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
