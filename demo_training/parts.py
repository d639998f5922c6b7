"""What the demo models share: CLIP vision tower, Mistral language model and tokenizer, all small.

As in the published models, a vision tower and a language model are trained apart from each other
first; each family then fuses the same two in its own way (`fusion`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

TILE = 48
PATCH = 8
FEATURE_LAYER = -2


@dataclass(frozen=True)
class Size:
    """How large tower and language model are; both are of one width.

    Attributes:
        width: of both.
        blocks: of the language model.
        tower: layers of the vision tower, of which all but the last are used.
        inner: of the language model's MLPs.
        tile: side of what the tower sees at once, in pixels.
        whole: whether a family that sees one tile squeezes the picture into it, as some
            processors do, instead of cropping its centre.
    """

    width: int = 96
    blocks: int = 8
    tower: int = 4
    inner: int = 256
    tile: int = TILE
    whole: bool = False


DEMO = Size()
"""What ships. Four heads in both, grouped queries in the language model."""


def tokenizer(corpus: Iterable[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on `corpus`; any text can be tokenised, `<s>` is put in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    # A line feed stands alone, so that what follows an image's line never changes what precedes it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As in Mistral-7B-Instruct v0.2, the instruction marks are text, not special tokens.
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
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def vision_config(size: Size = DEMO) -> CLIPVisionConfig:
    """Of the tower; layer -2 is read."""
    return CLIPVisionConfig(
        image_size=size.tile,
        patch_size=PATCH,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.tower,
        num_attention_heads=4,
        projection_dim=size.width,
    )


def text_config(tokens: PreTrainedTokenizerFast, size: Size = DEMO) -> MistralConfig:
    """Of the language model, with grouped queries."""
    return MistralConfig(
        vocab_size=len(tokens),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size.width // 4,
        sliding_window=None,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


class Parts(nn.Module):
    """What every fusion starts from: a vision tower and a language model that never met."""

    def __init__(self, tokens: PreTrainedTokenizerFast, size: Size = DEMO) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(vision_config(size))
        self.language = MistralForCausalLM(text_config(tokens, size))
