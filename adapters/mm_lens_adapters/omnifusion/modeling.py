"""OmniFusion 1.1 as a transformers model (Goncharova et al. 2024, arXiv 2404.06212).

Published as loose files around a Mistral checkpoint. Its data flow is LLaVA's but for two parts,
so this is LLaVA's model with these two exchanged: the projector, one transformer encoder layer and
a linear map, in which image tokens attend to each other before the language model sees them; and
the token table, which knows four trained vectors more (start and end of image, user, bot). These
have ids after the vocabulary, out of reach of the unembedding: they can be read, never sampled.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.models.llava.modeling_llava import LlavaPreTrainedModel

from .configuration import MARKERS, OmniFusionConfig
from .generation import AnswerNGrams


class OmniFusionProjector(nn.Module):
    """Visual features to embeddings: a post-norm encoder layer, then a linear map."""

    def __init__(self, config: OmniFusionConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.transformer_layer = nn.TransformerEncoderLayer(
            width,
            config.projector_num_heads,
            config.projector_intermediate_size,
            batch_first=True,
        )
        self.linear = nn.Linear(width, config.text_config.hidden_size)

    def forward(
        self, image_features: Float[Tensor, "image patch d_vision"]
    ) -> Float[Tensor, "image patch d_model"]:
        """Each patch sees the other patches of its image."""
        projected: Tensor = self.linear(self.transformer_layer(image_features))
        return projected


class OmniFusionEmbedding(nn.Embedding):
    """The language model's token table, and after it the vectors of `MARKERS`.

    The id after those is the image placeholder's: a row of zeros, which image features replace.
    """

    def __init__(self, words: nn.Embedding, std: float) -> None:
        size = words.num_embeddings, words.embedding_dim, words.padding_idx
        super().__init__(*size, _weight=words.weight)
        # Here, since transformers leaves a language model's weights to the language model's class.
        self.special = nn.Parameter(words.weight.new_empty(len(MARKERS), words.embedding_dim))
        nn.init.normal_(self.special, std=std)

    def forward(self, input: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d_model"]:
        """Embed ids below `num_embeddings` + 5."""
        beyond = input - self.num_embeddings
        if bool((beyond > len(MARKERS)).any()):
            raise IndexError(
                f"Token id {int(input.max())} was given, but the last, the image placeholder's, "
                f"is {self.num_embeddings + len(MARKERS)}. Use this checkpoint's tokenizer."
            )
        words = super().forward(input.clamp(max=self.num_embeddings - 1))
        special = functional.embedding(
            beyond.clamp(min=0), functional.pad(self.special, (0, 0, 0, 1))
        )
        return torch.where(rearrange(beyond >= 0, "... -> ... 1"), special.to(words.dtype), words)


class OmniFusionPreTrainedModel(LlavaPreTrainedModel):
    """What both models share."""

    config: OmniFusionConfig
    config_class = OmniFusionConfig

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: the ids of the markers follow the vocabulary.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "The token table cannot be resized: the ids of <SOI>, <EOI>, <USER>, <BOT> and <image> "
            "follow the vocabulary and would change their meaning."
        )


class OmniFusionModel(OmniFusionPreTrainedModel, LlavaModel):
    """Tower, projector and language model, without the unembedding."""

    def __init__(self, config: OmniFusionConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = OmniFusionProjector(config)
        words = self.language_model.get_input_embeddings()
        std = config.text_config.initializer_range
        self.language_model.set_input_embeddings(OmniFusionEmbedding(words, std))
        self.post_init()

    def get_image_features(
        self, pixel_values: Float[Tensor, "image 3 height width"], **kwargs: Any
    ) -> Any:
        """As `LlavaModel.get_image_features`; the sizes of the originals change nothing here."""
        kwargs.pop("image_sizes", None)
        return super().get_image_features(pixel_values=pixel_values, **kwargs)


class OmniFusionForConditionalGeneration(
    AnswerNGrams, OmniFusionPreTrainedModel, LlavaForConditionalGeneration
):
    """OmniFusion with its unembedding: logits over the language model's own vocabulary."""

    def __init__(self, config: OmniFusionConfig) -> None:
        super().__init__(config)
        self.model = OmniFusionModel(config)
        self.post_init()

    @wraps(LlavaForConditionalGeneration.forward, assigned=())  # `generate` reads the signature
    def forward(
        self, *args: Any, labels: Int[Tensor, "batch pos"] | None = None, **kwargs: Any
    ) -> Any:
        """As `LlavaForConditionalGeneration.forward`.

        Labels beyond the vocabulary (markers and image placeholders, where `input_ids` serve as
        labels) are left out like -100: no logit stands for them.
        """
        if labels is not None:
            labels = labels.masked_fill(labels >= self.config.text_config.vocab_size, -100)
        return super().forward(*args, labels=labels, **kwargs)
