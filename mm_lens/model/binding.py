"""Images for tools that take only tokens: `model.bound(inputs)`.

A call with tokens that hold image placeholders and comes without pixels gets those of the bound
inputs. Which of them, and which row, is told by the tensor itself where it is a piece of a bound
`input_ids` (a row, a slice of the batch, a row expanded to copies): prompts that differ only in
their image have equal tokens. Otherwise it is told by the number of placeholders in each row; if
that leaves several inputs, by equal tokens; if that does too, the call is refused. Tokens of inputs
that were prepared and are not bound are refused: they would get another picture than their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mm_lens._storage.checked import tensor_checksum
from mm_lens._storage.hashing import digest
from mm_lens.arguments import describe_value, require_kind, resolve_rows
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.matching import are_aligned, describe_difference
from mm_lens.model.families import Family
from mm_lens.model.inputs import Inputs, is_prepared
from mm_lens.model.running.frames import Frame

REMEDY = (
    "TransformerLens patches by position: use prompts of one length and images that make the same "
    "tokens, or mm_lens.patching, which matches regions by segment and pixel box."
)

UNLIKE = (
    "The clean run has another layout than the corrupted one, so position k of one is not position "
    "k of the other"
)

READ: Any = WeakTensorKeyDictionary()
"""The forward pass that each tensor read from a `LayoutCache` comes from."""


class Binding:
    """Inputs whose images calls with bare tokens get.

    Attributes:
        layout: what every position is, the same in all of them.
    """

    layout: TokenLayout

    def __init__(self, bound: Sequence[Mapping[str, Any]], family: Family) -> None:
        """Check that the inputs fit each other.

        Raises:
            InputError: there is none, or their positions do not stand for the same things.
        """
        if not bound:
            raise InputError("There is nothing to bind. Pass what model.prepare returned.")
        self.bound, self.family = list(bound), family
        for inputs in bound:
            require_kind(
                "What is bound", inputs, Mapping, "what model.prepare(text, images) returns"
            )
        layouts = [getattr(x, "layout", None) or family.layout(x) for x in bound]
        self.layout = layouts[0]
        self.n_images = [[len(images) for images in layout.image_sizes] for layout in layouts]
        for other in layouts[1:]:
            if not are_aligned(self.layout, other):
                raise InputError(
                    "The bound inputs have different layouts, so position k of one is not position "
                    f"k of the other:\n{self.layout.describe()}\n{other.describe()}\n{REMEDY}"
                )

    def check_read(self, frame: Frame) -> None:
        """Refuse activations of other positions than those of the bound inputs.

        Tools run rows and copies of the bound inputs and read the caches of these runs: caches made
        here are compared where their shape is that of the bound inputs, others always.

        Raises:
            InputError: position k is not the same thing in both.
        """
        if frame.explicit is self.layout and frame.shape != self.layout.shape:
            return
        if not frame.fits(self.layout):
            raise InputError(
                "Activations of other inputs than the bound ones are read here. "
                f"{UNLIKE}: {describe_difference(frame.layout, self.layout)}. {REMEDY}"
            )

    def complete(self, start: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword tensors of a call that starts from tokens or embeddings, with those it lacks.

        Raises:
            InputError: tokens hold image placeholders, and belong to none of the bound inputs or to
                several.
        """
        masked = kwargs.get("attention_mask") is not None
        if start.is_floating_point():
            mask = self.mask(start)
            if mask is None or masked:
                return kwargs
            # As TransformerLens derives them for tokens: a padded token is on nobody's position.
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            return {"position_ids": positions, **kwargs, "attention_mask": mask}
        sees, past = kwargs.get("pixel_values") is not None, kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0 and start.shape[1] == 1:
            return kwargs  # a decoding step: the image is in the cache, a placeholder is sampled
        if sees or not bool((start == self.family.image_token_id).any()):
            return kwargs
        filled = self.fill(start, masked)
        # What is None and nothing of the images is, say `return_type`, is meant so.
        return {**filled, **{k: v for k, v in kwargs.items() if v is not None or k not in filled}}

    def mask(self, embeddings: Tensor) -> Tensor | None:
        """Padding of the bound inputs, for a pass that starts from embeddings; None if none."""
        mask: Tensor | None = self.bound[0].get("attention_mask")
        if mask is None or bool(mask.all()):
            return None
        fits = embeddings.ndim == 3 and mask.shape == embeddings.shape[:2]
        return mask if fits else None  # refused by the layout if a modality hook asks for it

    def fill(self, tokens: Int[Tensor, "batch pos"], masked: bool) -> dict[str, Any]:
        """Keyword tensors for a call with `tokens`.

        Args:
            tokens: they hold image placeholders.
            masked: the call says itself what is padding.

        Raises:
            InputError: these tokens belong to none of the bound inputs, or to several.
        """
        found = [(k, rows) for k in range(len(self.bound)) if (rows := self._piece(k, tokens))]
        if not found:
            found = [(k, rows) for k in range(len(self.bound)) if (rows := self._like(k, tokens))]
            if found and is_prepared(tokens) and not any(map(partial(_shares, tokens), self.bound)):
                raise InputError(
                    "These tokens belong to prepared inputs that are not bound, and would get the "
                    "image of those that are. Bind them all: model.bound(corrupted, clean)."
                )
            if len(found) > 1:
                found = [(k, rows) for k, rows in found if self._equal(k, rows, tokens)]
        if len({k for k, _ in found}) != 1:
            raise self._refusal(tokens, bool(found))
        k, rows = found[0]
        own, image = self.bound[k]["input_ids"][rows].to(tokens.device), self.family.image_token_id
        filled = {n: follow(x, own, tokens, image) for n, x in self.pixels(k, rows).items()}
        mask = self.bound[k].get("attention_mask")
        if mask is not None and not bool(mask[rows].all()) and not masked:
            source, padding = self.bound[k]["input_ids"][rows], mask[rows] == 0
            if source.shape != tokens.shape or not torch.equal(tokens[padding], source[padding]):
                raise InputError(
                    "The bound inputs are padded, and these tokens are not padded alike: which of "
                    "them are real is unknown. Pass attention_mask too, or bind their own inputs."
                )
            filled["attention_mask"] = mask[rows]
        return filled

    def _piece(self, k: int, tokens: Tensor) -> list[int]:
        """Rows of the k-th inputs that `tokens` is a view of; none if it is no view."""
        whole: Tensor = self.bound[k]["input_ids"]
        if not _shares(tokens, self.bound[k]):
            return []
        width = whole.stride(0)
        first, rest = divmod(int(tokens.storage_offset() - whole.storage_offset()), max(width, 1))
        if rest or tokens.shape[1] != whole.shape[1] or tokens.stride(1) != whole.stride(1):
            return []
        step, odd = divmod(tokens.stride(0), max(width, 1)) if len(tokens) > 1 else (0, 0)
        return [] if odd else [first + step * i for i in range(len(tokens))]

    def _like(self, k: int, tokens: Tensor) -> list[int]:
        """Rows with as many placeholders: all of them, or copies of a single one."""
        want = self._placeholders(self.bound[k]["input_ids"]).to(tokens.device)
        have = self._placeholders(tokens)
        if len(want) == 1 and bool((have == want).all()):
            return [0] * len(have)
        return list(range(len(have))) if torch.equal(want, have) else []

    def _equal(self, k: int, rows: list[int], tokens: Tensor) -> bool:
        return torch.equal(self.bound[k]["input_ids"][rows].to(tokens.device), tokens)

    def _placeholders(self, tokens: Tensor) -> Tensor:
        return (tokens == self.family.image_token_id).sum(1)

    def pixels(self, k: int, rows: list[int]) -> dict[str, Any]:
        """Keyword tensors of rows of the k-th inputs, tokens and mask left out."""
        taken = self.family.take(self.bound[k], rows, self.n_images[k])
        return {
            name: value
            for name, value in taken.items()
            if isinstance(value, Tensor) and name not in ("input_ids", "attention_mask")
        }

    def _refusal(self, tokens: Tensor, several: bool) -> InputError:
        have = self._placeholders(tokens).tolist()
        if several or len(self.bound) > 1:
            return InputError(
                f"{len(self.bound)} inputs are bound, and which of them these tokens belong to is "
                f"unknown ({have} image placeholders in their rows; copies of tokens that differ "
                "in their image only look alike). Pass inputs.input_ids itself or rows of it, or "
                "bind one of them."
            )
        want = self._placeholders(self.bound[0]["input_ids"]).tolist()
        return InputError(
            f"The tokens hold {have} image placeholders in their rows, but the bound "
            f"inputs {want}. Bind the inputs that these tokens come from."
        )


def follow(value: Tensor, own: Tensor, tokens: Tensor, image: int) -> Tensor:
    """A tensor that says of each position what it is, for other tokens than it was made for.

    Tokens may be longer (a text was written behind them) or have another text.

    Args:
        value: a tensor of the bound inputs; one that is not of positions stays as it is.
        own: the tokens that it was made for.
        tokens: those that it is to be of.
        image: id of the placeholder.
    """
    if value.shape != own.shape or value.is_floating_point() or torch.equal(own, tokens):
        return value
    if torch.equal(value.to(own.device), (own == image).to(value.dtype)):
        return (tokens == image).to(value)
    if bool((value == value.flatten()[0]).all()):
        return torch.full_like(tokens, int(value.flatten()[0])).to(value)
    return value


def unpack(
    input: Any, kwargs: dict[str, Any], binding: Binding | None
) -> tuple[Any, dict[str, Any]]:
    """Tokens (or embeddings) and keyword tensors of whatever a model was called with.

    Args:
        input: tokens, embeddings, what `prepare` returns, or what TransformerLens takes besides.
        kwargs: the keyword arguments of the call, which are not changed.
        binding: gives what is missing.

    Raises:
        InputError: see `Binding.complete`.
    """
    kwargs = dict(kwargs)
    if isinstance(input, Mapping):
        kwargs = {**input, **kwargs}
        input = None
    if input is None and "input_ids" in kwargs:
        input = kwargs.pop("input_ids")
    if input is None and kwargs.get("inputs_embeds") is not None:
        input = kwargs.pop("inputs_embeds")
    if not isinstance(input, Tensor):
        if not isinstance(input, str | list) or not all(isinstance(x, str) for x in input):
            raise InputError(f"{_CALLED}, not {describe_value(input)}.")
        return input, kwargs
    if input.dtype == torch.bool or (input.is_floating_point() and input.ndim != 3):
        raise InputError(f"{_CALLED}, not {input.dtype} of shape {tuple(input.shape)}.")
    if not input.numel():
        raise InputError(f"There is no token in an input of shape {tuple(input.shape)}.")
    _check_mask(input, kwargs)
    if input.ndim == 1 and not input.is_floating_point():
        input = rearrange(input, "pos -> 1 pos")
    return input, kwargs if binding is None else binding.complete(input, kwargs)


_CALLED = (
    "A model is called with what model.prepare(text, images) returns, with tokens [batch, pos] "
    "(whole numbers), or with a text without images"
)


def _check_mask(tokens: Tensor, kwargs: Mapping[str, Any]) -> None:
    """Refuse a mask of other tokens: some models take one of any length, in silence."""
    mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    shape = tuple(tokens.shape[:2]) if tokens.ndim > 1 else (1, len(tokens))
    if isinstance(mask, Tensor) and mask.ndim == 2 and past is None and mask.shape != shape:
        raise InputError(
            f"attention_mask is of shape {tuple(mask.shape)}, but the tokens are of {shape} "
            "[batch, pos]. Pass that of the same inputs, or none where nothing is padded."
        )


def _shares(tokens: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether `tokens` are, or are a piece of, the tokens of `inputs`: no copy."""
    own: int = inputs["input_ids"].untyped_storage().data_ptr()
    return tokens.untyped_storage().data_ptr() == own


def guard_patch(hook: Callable[..., Any], layout: Callable[[], TokenLayout]) -> Callable[..., Any]:
    """A hook of `transformer_lens.patching`, refused where clean and corrupted do not fit.

    TransformerLens would patch position k of the clean run into position k of the corrupted one,
    whatever they are. Other hooks are handed back as they are.

    Args:
        hook: any hook.
        layout: of the running forward pass.
    """
    clean = hook.keywords.get("clean_activation") if isinstance(hook, partial) else None
    if not isinstance(clean, Tensor):
        return hook

    def run(tensor: Tensor, hook: Any) -> Any:
        _check_clean(clean, tensor, layout)
        return user(tensor, hook=hook)

    user = hook
    return run


def _check_clean(clean: Tensor, corrupted: Tensor, layout: Callable[[], TokenLayout]) -> None:
    fits = clean.shape[1:] == corrupted.shape[1:] and len(clean) in (1, len(corrupted))
    if not fits:
        raise InputError(
            f"The clean activation is {tuple(clean.shape)}, the corrupted one "
            f"{tuple(corrupted.shape)}: their positions are not the same things. {REMEDY}"
        )
    if (frame := READ.get(clean)) is None:
        return
    here = layout()
    if not any(frame.layout.image_sizes) and not any(here.image_sizes):
        # Text alone is patched by position, as TransformerLens does: a special token is a token.
        theirs, mine = frame.layout.modality.to(here.device), here.modality
        if theirs.shape[1] == mine.shape[1] and bool((theirs[:1] == mine).all()):
            return
    if not frame.fits(here):
        raise InputError(f"{UNLIKE}: {describe_difference(frame.layout, here)}. {REMEDY}")


def take_frame(frame: Frame, rows: Sequence[int]) -> Frame:
    """The forward pass of some rows, as it would have been: for a slice of its cache."""
    layout = frame.layout
    kept = frame.family.take(frame.inputs, rows, [*map(len, layout.image_sizes)])
    taken = Frame(frame.family, kept, frame.explicit)
    taken.layout = layout.take(rows)
    return taken


def identify_pictures(frame: Frame) -> list[str]:
    """What tells the pictures of each row from others; "" where it has none.

    Tiles of zeros, which fill up pictures of fewer tiles than another of the batch, do not count.
    """
    pixels, sizes = frame.inputs.get("pixel_values"), frame.layout.image_sizes
    if not isinstance(pixels, Tensor):
        return [""] * len(sizes)
    ends = [0, *accumulate(map(len, sizes))]
    counts = frame.family.rows_per_image("pixel_values", frame.inputs)
    if counts is None or len(counts) != ends[-1] or sum(counts) != len(pixels):
        # Whose pixels these are is unknown: no two rows are alike.
        return [f"{tensor_checksum(pixels)} row {row}" for row in range(len(sizes))]
    shown = [
        f"{tensor_checksum(_without_filling(image))} {size}"
        for image, size in zip(pixels.split(list(counts)), chain(*sizes), strict=True)
    ]
    return [" ".join(shown[start:end]) for start, end in pairwise(ends)]


def _without_filling(image: Shaped[Tensor, "..."]) -> Tensor:
    """The pixels of an image without the tiles of zeros at its end."""
    if image.ndim < 5:
        return image
    tiles = image.flatten(0, 1)
    filled = tiles.flatten(1).any(1).nonzero()
    return tiles[: int(filled[-1]) + 1] if len(filled) else tiles


def identify_texts(frame: Frame) -> list[str]:
    """What tells the tokens of each row from others, padding aside."""
    tokens, attended = frame.inputs.get("input_ids"), frame.layout.mask("all")
    if tokens is None:
        return [tensor_checksum(row) for row in frame.inputs["inputs_embeds"]]
    return [repr(row[real].tolist()) for row, real in zip(tokens, attended, strict=True)]


def identify_documents(frame: Frame) -> list[int]:
    """Id of what each row shares with others: its pictures, or its text where it has none.

    Rows with one id are no independent samples: several questions about one picture have its
    tokens, the same up to rounding.
    """
    pairs = zip(identify_pictures(frame), identify_texts(frame), strict=True)
    return [digest(pictures or text) for pictures, text in pairs]


def take_rows(inputs: Inputs, index: Sequence[int] | Tensor) -> dict[str, Any]:
    """Some rows of prepared inputs, with their images, in the order asked for; rows may repeat.

    For tools that draw batches of their own: give them row numbers for inputs, and
    `lambda i: model(take_rows(inputs, i))` for the function that runs the model.
    """
    binding = Binding([inputs], inputs.family)
    chosen = resolve_rows(index, len(inputs.input_ids))
    prompts = {k: inputs[k][chosen] for k in ("input_ids", "attention_mask") if k in inputs}
    return {**prompts, **binding.pixels(0, chosen)}
