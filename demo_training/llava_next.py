"""The demo LLaVA-NeXT: how its fusion is built around the parts that all demo models share.

Everything that the 7B checkpoint has is here at a smaller size: two-layer projector,
any-resolution tiling with five grid shapes, chat template of llava-v1.6-mistral.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from demo_training.fusion import Fusion
from demo_training.parts import (
    DEMO,
    FEATURE_LAYER,
    PATCH,
    Size,
    text_config,
    vision_config,
)

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""(rows, columns) of tiles."""
TWO = GRIDS[:2]
"""Of models that see the whole picture well enough in the overview."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- set parts = message['content'] %}
{%- set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') \
| map(attribute='text') | join(' ') %}
{%- set images = [] if parts is string else parts | selectattr('type', 'equalto', 'image') | list %}
{%- if message['role'] == 'system' %}{{- '<<SYS>>\\n' + text + '\\n<</SYS>>\\n\\n' }}
{%- elif message['role'] == 'user' %}
{{- '[INST] ' }}{% for image in images %}{{- '<image>\\n' }}{% endfor %}{{- text + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{- ' ' + text + eos_token }}
{%- else %}{{- raise_exception('Only user, system and assistant roles are supported.') }}
{%- endif %}
{%- endfor %}"""


class LlavaNextFusion(Fusion):
    """An overview and up to four tiles, each token projected on its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: Size = DEMO) -> None:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
        side = size.tile
        grids = [[side * h, side * w] for h, w in (TWO if size.whole else GRIDS)]
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=grids,
        )
        self.processor = LlavaNextProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
        config = LlavaNextConfig(
            vision_config=vision_config(size),
            text_config=text_config(tokenizer, size),
            image_token_index=tokenizer.vocab["<image>"],
            image_grid_pinpoints=grids,
            vision_feature_layer=FEATURE_LAYER,
            vision_feature_select_strategy="default",
            image_seq_length=(side // PATCH) ** 2,
            tie_word_embeddings=False,
            architectures=["LlavaNextForConditionalGeneration"],
        )
        self.model = LlavaNextForConditionalGeneration(config)

    def connectors(self) -> list[nn.Parameter]:
        """The projector, and the vector that ends each row of tiles."""
        model = self.model.model
        return [*model.multi_modal_projector.parameters(), model.image_newline]

    def native(self, pixels: Float[Tensor, "image tile 3 height width"]) -> Tensor:
        """As they are."""
        return pixels
