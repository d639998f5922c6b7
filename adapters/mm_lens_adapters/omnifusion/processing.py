"""From prompts and images to the inputs of OmniFusion, as its published pipeline makes them."""

from __future__ import annotations

import re
from typing import Any, no_type_check

from PIL import Image
from transformers import BatchFeature, LlavaProcessor, PreTrainedTokenizerBase
from transformers.image_utils import get_image_size, make_flat_list_of_images, to_numpy_array

from mm_lens_adapters.fitting import check_resized, edge_sizes

from .configuration import IMAGE_TOKEN, MARKERS

PROMPT = "This is a dialog with AI assistant.\n"

# prompt | SOI image EOI … | USER question | BOT answer … ; a system message replaces the prompt.
CHAT_TEMPLATE = (
    """\
{%- for message in messages %}
{%- set parts = message['content'] %}
{%- set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') \
| map(attribute='text') | join(' ') %}
{%- set images = [] if parts is string else parts | selectattr('type', 'equalto', 'image') | list %}
{%- if loop.first and message['role'] != 'system' %}{{- '"""
    + PROMPT.replace("\n", "\\n")
    + """' }}\
{%- endif %}
{%- if message['role'] == 'system' %}{{- text }}
{%- elif message['role'] == 'user' %}
{%- for image in images %}{{- '<SOI><image><EOI>' }}{% endfor %}{{- '<USER>' + text }}
{%- elif message['role'] == 'assistant' %}{{- '<BOT>' + text + eos_token }}
{%- else %}{{- raise_exception('Only user, system and assistant roles are supported.') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<BOT>' }}{% endif %}"""
)

_MARKED = re.compile("(" + "|".join(map(re.escape, (*MARKERS, IMAGE_TOKEN))) + ")")


def add_markers(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Give the markers and the image placeholder the ids `vocab_size`, `vocab_size` + 1, …

    Where the tokenizer knows fewer tokens than the model has rows, unused ones fill the gap.

    Raises:
        ValueError: the tokenizer knows more tokens than the language model.
    """
    gap = vocab_size - len(tokenizer)
    if gap < 0:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model only {vocab_size}: "
            "they do not belong together."
        )
    filler = [f"<unused_{vocab_size - gap + k}>" for k in range(gap)]
    tokens = [*filler, *MARKERS, IMAGE_TOKEN]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": tokens}, replace_extra_special_tokens=False
    )
    found = tokenizer.convert_tokens_to_ids([*MARKERS, IMAGE_TOKEN])
    if found != list(range(vocab_size, vocab_size + len(MARKERS) + 1)):
        names = ", ".join((*MARKERS, IMAGE_TOKEN))
        raise ValueError(f"The tokenizer knows some of {names} already: their ids are {found}.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as in the published pipeline


def _size(image: Any, channels: Any) -> tuple[int, int]:
    """(height, width). Of a PIL image it is known; a guess would take 3 rows for channels."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = get_image_size(to_numpy_array(image), channel_dim=channels)
    return height, width


class OmniFusionProcessor(LlavaProcessor):
    """Image processor, tokenizer and prompt of OmniFusion.

    Args:
        image_processor: CLIP's: shortest edge and centre crop to the tower's window.
        tokenizer: one that `add_markers` has been through.
        patch_size: of the tower, in pixels.
        chat_template: None takes the published prompt.
    """

    @no_type_check  # `from_pretrained` reads the arguments off the function: it must not be wrapped
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 14,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs = {
            "vision_feature_select_strategy": "default",
            "image_token": IMAGE_TOKEN,
            "num_additional_image_tokens": 1,
            **kwargs,
        }
        template = CHAT_TEMPLATE if chat_template is None else chat_template
        super().__init__(
            image_processor, tokenizer, patch_size=patch_size, chat_template=template, **kwargs
        )

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Inputs of the model for one prompt or a list of prompts, with their images in order.

        The texts between markers are tokenised one by one and without BOS, as in the published
        pipeline: a tokenizer that puts a space in front of a text does so for each of them.

        Args:
            images: of all prompts, one for each `<image>`.
            text: rendered prompts.
            kwargs: as for any processor (`padding`, `padding_side`, `return_tensors`, …).

        Returns:
            `input_ids`, `attention_mask`, and with images `pixel_values` [images, 3, height, width]
            and `image_sizes` [images, 2], the (height, width) of the originals in pixels.

        Raises:
            ValueError: images and placeholders do not match, truncation is asked for, or a picture
                is too long for its height (or the other way round).
        """
        text = [text] if isinstance(text, str) else text
        self.validate_inputs(images=images, text=text)
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        options = merged["text_kwargs"]
        if options.get("truncation"):
            raise ValueError("Truncation would cut images in two: shorten the text instead.")

        data: dict[str, Any] = {}
        if images is not None:
            fetched: Any = make_flat_list_of_images(self.image_processor.fetch_images(images))
            channels = merged["images_kwargs"].get("input_data_format")
            sizes = [_size(image, channels) for image in fetched]
            if shortest := edge_sizes(self.image_processor.size).shortest_edge:
                for size in sizes:
                    check_resized(size, shortest)
            data = dict(self.image_processor(fetched, **merged["images_kwargs"]))
            data["image_sizes"] = sizes
        if text is not None:
            ids = {"input_ids": [self._encode(prompt) for prompt in text]}
            keys = ("padding", "padding_side", "max_length", "pad_to_multiple_of")
            data |= self.tokenizer.pad(ids, **{k: options[k] for k in keys if k in options})
        return BatchFeature(data, tensor_type=options.get("return_tensors"))

    def _encode(self, prompt: str) -> list[int]:
        size = self.image_processor.crop_size
        patches = (size["height"] // self.patch_size) * (size["width"] // self.patch_size)
        ids: list[int] = []
        for piece in filter(None, _MARKED.split(prompt)):
            if _MARKED.fullmatch(piece):
                copies = patches if piece == IMAGE_TOKEN else 1
                ids += [self.tokenizer.convert_tokens_to_ids(piece)] * copies
            else:
                ids += self.tokenizer(piece, add_special_tokens=False).input_ids
        return ids
