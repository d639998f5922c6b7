"""Configuration, tokenizer and processor of the demo model: LLaVA-NeXT's own classes, small.

Everything that the 7B checkpoint has is here at a smaller size: CLIP vision tower read at layer
-2 without its class token, two-layer projector, Mistral language model with grouped-query
attention, any-resolution tiling with five grid shapes, chat template of llava-v1.6-mistral.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

TILE = 48
PATCH = 8
GRIDS = [[TILE * h, TILE * w] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]

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


def tokenizer(corpus: Iterable[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `corpus`; any text can be tokenised, ``<s>`` is put in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    # A line feed stands alone, so that what follows "<image>\n" never changes what precedes it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As in llava-v1.6-mistral, the instruction marks are text, not special tokens.
    backend.add_tokens([AddedToken(mark, special=False) for mark in ("[INST]", "[/INST]")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A $B",
        special_tokens=[("<s>", backend.token_to_id("<s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def processor(tokens: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    """LLaVA-NeXT's processor with the PIL image processor, which does not need torchvision."""
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=GRIDS,
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def config(tokens: PreTrainedTokenizerFast) -> LlavaNextConfig:
    """1.3 M parameters: 4 vision layers (3 of them used, as layer -2 is read), 8 text layers."""
    vision = CLIPVisionConfig(
        image_size=TILE,
        patch_size=PATCH,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=96,
    )
    text = MistralConfig(
        vocab_size=len(tokens),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        sliding_window=None,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.vocab["<image>"],
        image_grid_pinpoints=GRIDS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
        architectures=["LlavaNextForConditionalGeneration"],
    )
