"""Inputs of a vision-language model: prompts and pictures in, tensors and their layout out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mm_lens._notebook import make_table, make_thumbnails
from mm_lens.data.pictures import Picture, open_picture
from mm_lens.errors import InputError
from mm_lens.layout.layout import SHOWN, TokenLayout
from mm_lens.model.families import Family

COUNTED = ("visual", "text", "pad")
"""Groups whose tokens notebooks count."""

_STORAGES: set[StorageWeakRef] = set()
"""Memory of the tokens of all `Inputs` that live."""


def is_prepared(tokens: Tensor) -> bool:
    """Whether `tokens` are the tokens of some `Inputs`, or a piece of them, and no copy."""
    return StorageWeakRef(tokens.untyped_storage()) in _STORAGES


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
    """

    tensors: Mapping[str, Any]
    text: tuple[str, ...]
    images: tuple[tuple[Image.Image, ...], ...]
    family: Family

    def __post_init__(self) -> None:
        _STORAGES.difference_update([known for known in list(_STORAGES) if known.expired()])
        if isinstance(tokens := self.tensors.get("input_ids"), Tensor):
            _STORAGES.add(StorageWeakRef(tokens.untyped_storage()))

    @cached_property
    def layout(self) -> TokenLayout:
        """What every position is."""
        return self.family.layout(self.tensors)

    @property
    def input_ids(self) -> Int[Tensor, "batch pos"]:
        """The tokens, one placeholder for every image token."""
        tokens: Tensor = self.tensors["input_ids"]
        return tokens

    def to(self, device: torch.device | str) -> Inputs:
        """The same inputs with every tensor on `device`."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.tensors.items()}
        return replace(self, tensors=moved)

    def __getitem__(self, key: str) -> Any:
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.tensors:
            raise AttributeError(f"Inputs hold no {name!r}; they hold {', '.join(self.tensors)}.")
        return self.tensors[name]

    def __repr__(self) -> str:
        return f"Inputs(\n{self.layout.describe(most=SHOWN)}\n)"

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
    text: str | Sequence[str],
    images: Picture | Sequence[Any] | None = None,
    *,
    chat_template: bool | None = None,
    padding_side: Literal["left", "right"] | None = None,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Turn prompts and images into model inputs: one prompt or a batch, padded where ragged.

    Args:
        family: the model's family.
        processor: the model's processor.
        text: one prompt, or one for each row.
        images: for one prompt: an image, a list of images, or None; for a batch: one such entry
            for each row.
        chat_template: wrap each prompt as a user's turn, images first, with the processor's chat
            template. None does so unless the prompts hold image placeholders already or there is no
            template; then each image's placeholder goes before the text.
        padding_side: where shorter rows are padded; None takes the tokenizer's side.
        device: where the tensors go.

    Raises:
        InputError: an image cannot be read, or images and placeholders do not match.
    """
    single = isinstance(text, str)
    prompts = [text] if isinstance(text, str) else list(text)
    if not prompts:
        raise InputError("There is no prompt. Pass at least one.")
    rows = [images] if single else _rows(images, len(prompts))
    pictures = tuple(tuple(open_picture(image) for image in _as_list(row)) for row in rows)
    rendered = [
        _render(processor, prompt, len(row), chat_template)
        for prompt, row in zip(prompts, pictures, strict=True)
    ]
    flat = [image for row in pictures for image in row]
    tokenizer = processor.tokenizer
    written, rendered = _with_bos(tokenizer, rendered)
    batch = processor(
        images=flat or None,
        text=rendered,
        padding=True,
        padding_side=padding_side or tokenizer.padding_side,
        add_special_tokens=not written,
        return_tensors="pt",
    )
    tensors = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return Inputs(tensors, tuple(rendered), pictures, family)


def _with_bos(tokenizer: Any, prompts: list[str]) -> tuple[bool, list[str]]:
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


def _render(processor: Any, prompt: str, n_images: int, chat_template: bool | None) -> str:
    token = processor.image_token
    written = prompt.count(token)
    if written and written != n_images:
        raise InputError(
            f"The prompt holds {written} image placeholder(s) {token!r}, but {n_images} image(s) "
            "were given for it. Write one placeholder for each image, or none at all."
        )
    template = getattr(processor, "chat_template", None)
    if chat_template is None:
        chat_template = template is not None and not written
    if not chat_template:
        return prompt if written else f"{token}\n" * n_images + prompt
    if template is None:
        raise InputError(
            "The processor has no chat template. Pass chat_template=False and write the prompt in "
            "the model's own format."
        )
    if written:
        raise InputError(
            f"chat_template=True places the images itself, but the prompt holds {token!r} already. "
            "Leave the placeholders out, or pass chat_template=False."
        )
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": prompt}]
    rendered: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return rendered
