"""Inputs of a vision-language model: prompts and pictures in, tensors and their layout out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mm_lens._notebook import make_table, make_thumbnails
from mm_lens.arguments import require_kind
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.data.prompts import Message, list_prompts, place_images, read_question, render
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.layout import SHOWN, TokenLayout
from mm_lens.model.families import ORIGINAL_SIZES, Family, without_own
from mm_lens.model.families.known import recall

COUNTED = ("visual", "text", "pad")
"""Groups whose tokens notebooks count."""

Prompt: TypeAlias = "str | Sequence[Message]"
"""A text, or the messages of a chat."""

_STORAGES: dict[StorageWeakRef, bool] = {}
"""Memory of the tokens of all `Inputs` that live, and whether they may be without an image."""


def is_prepared(tokens: Tensor) -> bool:
    """Whether `tokens` are the tokens of some `Inputs`, or a piece of them, and no copy."""
    return StorageWeakRef(tokens.untyped_storage()) in _STORAGES


def is_text_only_meant(tokens: Tensor) -> bool:
    """Whether `tokens` are those of `Inputs` that were said to have no image."""
    return _STORAGES.get(StorageWeakRef(tokens.untyped_storage()), False)


class _Omitted:
    """No images were named: not the same as `images=None`, which says that there are none."""

    def __repr__(self) -> str:
        return "None"


OMITTED: Any = _Omitted()


@dataclass(frozen=True, eq=False)
class Inputs(Mapping[str, Any]):
    """What `model.prepare` returns; taken wherever TransformerLens takes tokens.

    A mapping of the keyword arguments of the Hugging Face model (`input_ids`, `attention_mask`,
    `pixel_values`, `image_sizes`, …), so `hf_model(**inputs)` works too. Each is also an attribute.

    Attributes:
        tensors: the keyword arguments.
        text: the prompts as rendered, one for each row.
        images: the pictures of each row, RGB.
        family: the family of the model they were prepared for.
        templated: whether the chat template was applied, for each row.
        text_only: whether rows without an image are meant: it was said that they have none.
        questions: what each row asks, as a person reads it: the prompt without the chat template.
    """

    tensors: Mapping[str, Any]
    text: tuple[str, ...]
    images: tuple[tuple[Image.Image, ...], ...]
    family: Family
    templated: tuple[bool, ...] = ()
    text_only: bool = False
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for known in [known for known in list(_STORAGES) if known.expired()]:
            _STORAGES.pop(known, None)
        if isinstance(tokens := self.tensors.get("input_ids"), Tensor):
            _STORAGES[StorageWeakRef(tokens.untyped_storage())] = self.text_only

    @cached_property
    def layout(self) -> TokenLayout:
        """What every position is."""
        return recall(self.family, self.tensors).layout_there(self.family, self.tensors)

    @property
    def on_cpu(self) -> tuple[TokenLayout, Int[Tensor, "batch pos"]]:
        """Layout and tokens on the CPU, where they are read without waiting for a GPU."""
        known = recall(self.family, self.tensors)
        return known.layout(self.family, self.tensors), known.tokens(self.tensors)

    @property
    def input_ids(self) -> Int[Tensor, "batch pos"]:
        """The tokens, one placeholder for every image token."""
        tokens: Tensor = self.tensors["input_ids"]
        return tokens

    @property
    def native(self) -> dict[str, Any]:
        """The keyword arguments of a native model, which does not take all that `prepare` adds."""
        return without_own(self.tensors)

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs with every tensor on `device`.

        Raises:
            InputError: it is no device, or not here.
        """
        if isinstance(device, torch.dtype):
            raise InputError(
                f"Inputs.to takes a device, not {device}: in it tokens would be no tokens. The "
                "model converts pixels to its own type."
            )
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise InputError(f"There is no device {device!r} here. Try cpu.") from error
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.tensors.items()}
        return replace(self, tensors=moved)

    # Not what a mapping makes of it, which would compare tensors and know no hash.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, key: str) -> Any:
        if key not in self.tensors:
            raise KeyError(f"Inputs hold no {key!r}; they hold {', '.join(self.tensors)}.")
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getattr__(self, name: str) -> Any:
        tensors = self.__dict__.get("tensors", {})  # empty while a copy is made
        if name.startswith("_") or name not in tensors:
            raise AttributeError(f"Inputs hold no {name!r}; they hold {', '.join(tensors)}.")
        return tensors[name]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # a copy has tokens of its own

    def __repr__(self) -> str:
        return f"Inputs(\n{self.layout.describe(most=SHOWN)}\n)"

    def plot(self, row: int = 0, image: int = 0) -> Any:
        """The tokens of an image drawn over it, as a matplotlib figure.

        Args:
            row: row of the batch.
            image: image of this row.

        Raises:
            InputError: there is no such image.
        """
        from mm_lens.drawing.overlay import draw_layout

        return draw_layout(self, row, image)

    def _repr_html_(self) -> str:
        """Prompt, pictures and number of tokens of each row."""
        counts = zip(*(self.layout.counts(group).tolist() for group in COUNTED), strict=True)
        rows = [
            (text, make_thumbnails(pictures), *numbers)
            for text, pictures, numbers in zip(self.text, self.images, counts, strict=True)
        ]
        return make_table(["prompt", "pictures", *COUNTED], rows)


def prepare(
    family: Family,
    processor: Any,
    text: Prompt | Sequence[Prompt],
    images: Picture | Sequence[Any] | None = OMITTED,
    *,
    chat_template: bool | None = None,
    padding_side: Literal["left", "right"] | None = None,
    device: torch.device | str = "cpu",
    tell: Callable[[str], None] = lambda doubt: warnings.warn(doubt, MMLensWarning, stacklevel=3),
    **unknown: Any,
) -> Inputs:
    """Turn prompts and images into model inputs: one prompt or a batch, padded where ragged.

    Args:
        family: the model's family.
        processor: the model's processor.
        text: one prompt, or one for each row. A prompt is a text, or chat messages as transformers
            takes them, `[{"role": "user", "content": [{"type": "image"}, {"type": "text", …}]}]`;
            these may hold their images.
        images: for one prompt: an image (in any form that `open_picture` takes), a list of images,
            or None; for a batch: one such entry for each row. None says that there is no image.
        chat_template: True renders each text as a user's turn with the processor's chat template,
            images where their placeholders stand, else first. False takes texts as they are; the
            placeholders of images that they lack go before them. None renders texts without
            placeholders, where there is a template. Messages are always rendered.
        padding_side: where shorter rows are padded; None takes the tokenizer's side.
        device: where the tensors go.
        tell: warns the user.
        unknown: refused, with the name that is meant.

    Raises:
        InputError: a prompt is neither text nor messages, an image cannot be read, images and
            placeholders do not match, or the chat template drops something.

    Warns:
        MMLensWarning: a template was left out, or applied twice, as it seems.
    """
    _refuse_unknown(unknown)
    for name, value, valid in (
        ("chat_template", chat_template, (True, False, None)),
        ("padding_side", padding_side, ("left", "right", None)),
    ):
        if not (value is None or (type(value) is type(valid[0]) and value in valid)):
            raise InputError(f"{name} is one of {', '.join(map(repr, valid))}, not {value!r}.")
    single, prompts = list_prompts(text)
    given = None if images is OMITTED else images
    rows = [given] if single else _rows(given, len(prompts))
    sources = [
        place_images(prompt, _as_list(row)) for prompt, row in zip(prompts, rows, strict=True)
    ]
    if any(isinstance(image, (list, tuple)) for row in sources for image in row):
        raise InputError(
            "The images of one prompt are one list, as [image, other], and hold no lists. For "
            "several prompts, pass one entry for each: an image, a list of images, or None."
        )
    alone = sum(map(len, sources)) == 1
    pictures = tuple(
        tuple(
            open_picture(image, name="An image" if alone else f"Image {k} of row {i}")
            for k, image in enumerate(row)
        )
        for i, row in enumerate(sources)
    )
    rendered = [
        render(processor, prompt, len(row), chat_template, family.behind_image)
        for prompt, row in zip(prompts, pictures, strict=True)
    ]
    for doubt in sorted({prompt.doubt for prompt in rendered if prompt.doubt}):
        tell(doubt)
    tokenizer = processor.tokenizer
    side = _padding_side(family, padding_side, len(prompts)) or tokenizer.padding_side
    _require_images(family, pictures)
    flat = [image for row in pictures for image in row]
    for image in flat:
        family.require_size((image.height, image.width))
    written, texts = with_bos(tokenizer, [prompt.text for prompt in rendered])
    # Else a picture of one or three rows might be taken for channels.
    layout = {"input_data_format": "channels_last"} if flat else {}
    batch = processor(
        images=(list(map(list, pictures)) if family.nested else flat) if flat else None,
        text=texts,
        padding=True,
        padding_side=side,
        add_special_tokens=not written,
        return_tensors="pt",
        **layout,
    )
    _check_ids(batch["input_ids"], tokenizer, family)
    tensors = {k: v for k, v in batch.items() if k not in family.drop}
    if flat and family.sizes == ORIGINAL_SIZES:
        tensors[ORIGINAL_SIZES] = torch.tensor([[image.height, image.width] for image in flat])
    tensors = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in tensors.items()}
    return Inputs(
        tensors,
        tuple(texts),
        pictures,
        family,
        templated=tuple(prompt.templated for prompt in rendered),
        text_only=images is not OMITTED,
        questions=tuple(map(read_question, prompts)),
    )


def _check_ids(ids: Int[Tensor, "batch pos"], tokenizer: Any, family: Family) -> None:
    """Refuse tokens that the model has no row for: it would fail somewhere inside of itself."""
    config = getattr(family, "config", None)
    rows = getattr(config and config.get_text_config(), "vocab_size", None)
    if rows is None or not ids.numel():
        return
    most = max(rows - 1, family.image_token_id)
    if (largest := int(ids.max())) > most:
        raise InputError(
            f"The tokenizer makes the token {tokenizer.convert_ids_to_tokens(largest)!r} with the "
            f"id {largest:,}, but the model has none above {most:,}. They are not of one "
            "checkpoint: get its tokenizer again."
        )


def _padding_side(family: Family, asked: str | None, batch: int) -> str | None:
    """Where rows are padded, if the user or the family says so."""
    needed = family.padding_side
    if needed and asked and asked != needed and batch > 1:
        raise InputError(
            f"Rows of this model must be padded on the {needed}: padded on the {asked}, a row has "
            "other logits than alone. Leave padding_side out, or prepare one prompt at a time."
        )
    return asked or needed


def _require_images(family: Family, pictures: Sequence[Sequence[Any]]) -> None:
    """Refuse a prompt without an image where the family cannot have one."""
    without = [row for row, images in enumerate(pictures) if not images]
    if family.needs_image and without:
        raise InputError(
            f"Prompt {without[0]} has no image, and this model takes none without: "
            f"{family.needs_image}. Give it an image, or leave it out."
        )


def check_inputs(model: Any, inputs: Any) -> None:
    """Refuse what is no model of `mm_lens.load`, or no `Inputs`.

    Raises:
        InputError: naming both.
    """
    if not callable(getattr(type(model), "prepare", None)):
        raise InputError(f"model is what mm_lens.load(…) returns, not a {type(model).__name__}.")
    require_kind("inputs", inputs, Inputs, "what model.prepare(text, images) returns")


_MEANT = {
    "image": "images",
    "pictures": "images",
    "pixel_values": "images",
    "prompt": "text",
    "prompts": "text",
    "texts": "text",
    "messages": "text",
    "conversation": "text",
    "apply_chat_template": "chat_template",
    "padding": "padding_side",
}


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    for name in unknown:
        meant = f"it is called {_MEANT[name]}=" if name in _MEANT else "there is no such argument"
        raise InputError(
            f"prepare takes no {name}=: {meant}. It takes text, images, chat_template and "
            "padding_side."
        )


def with_bos(tokenizer: Any, prompts: list[str]) -> tuple[bool, list[str]]:
    """Whether the prompts write their BOS token themselves, as chat templates may: then all do."""
    bos = tokenizer.bos_token
    if not bos or not any(prompt.startswith(bos) for prompt in prompts):
        return False, prompts
    adds = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return True, [p if p.startswith(bos) or not adds else bos + p for p in prompts]


def _rows(images: Any, batch: int) -> list[Any]:
    if images is None:
        return [None] * batch
    rows = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(rows) != batch:
        raise InputError(
            f"There are {batch} prompts, but images for {len(rows)}. Pass one entry for each "
            "prompt: an image, a list of images, or None."
        )
    return rows


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def find_targets(
    tokens: Any, mask: Tensor | None, family: Family, d_vocab: int
) -> Int[Tensor, "batch pos"] | None:
    """Labels for a loss over tokens that are written; None where the model's own do.

    Placeholders of image tokens, padding, and a family's own markers, whose ids come after the
    vocabulary where no logit stands, are left out.
    """
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return None
    ignore = (tokens == family.image_token_id) | (tokens >= d_vocab)
    if not ignore.any():
        return None
    return tokens.masked_fill(ignore if mask is None else ignore | (mask == 0), -100)
