"""Configuration of OmniFusion: LLaVA's, with another projector and four ids of its own."""

from __future__ import annotations

from typing import Any, ClassVar, no_type_check

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

MARKERS = ("<SOI>", "<EOI>", "<USER>", "<BOT>")
"""Start and end of an image, and whose turn it is. Their ids follow the vocabulary, in this order;
the image placeholder's comes after them."""

IMAGE_TOKEN = "<image>"


# `strict` reads annotations at run time, so no field may be annotated as a string's name only. It
# takes more keyword arguments than fields, which a checker of signatures (the tests') must not see.
@no_type_check
@strict
class OmniFusionConfig(LlavaConfig):
    r"""Configuration of `OmniFusionForConditionalGeneration`.

    The defaults are those of OmniFusion 1.1 (arXiv 2404.06212): Mistral-7B, CLIP ViT-L/14 at 336
    pixels, one transformer encoder layer with 4 heads and a linear map between them.

    Args:
        vision_config: of the CLIP tower.
        text_config: of the language model, whose `vocab_size` is called V below.
        projector_num_heads: attention heads of the projector.
        projector_intermediate_size: width of the projector's feed-forward layer.
        image_token_index: id of the image placeholder: V + 4. The markers have V to V + 3.
    """

    model_type: ClassVar[str] = "omnifusion"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        **LlavaConfig.sub_configs_defaults,
        "text_config": LlavaConfig.sub_configs_defaults["text_config"].__class__(
            config_class=LlavaConfig.sub_configs_defaults["text_config"].config_class,
            model_type="mistral",
        ),
    }

    vision_config: Any = None
    text_config: Any = None
    image_token_index: int | None = None
    projector_num_heads: int = 4
    projector_intermediate_size: int = 2048

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        first = self.text_config.vocab_size
        if self.image_token_index is None:
            self.image_token_index = first + len(MARKERS)
        if self.image_token_index != first + len(MARKERS):
            raise ValueError(
                f"image_token_index is {self.image_token_index}, but with a vocabulary of {first} "
                f"the placeholder's id is {first + len(MARKERS)}: leave it out."
            )
        if self.vision_feature_select_strategy != "default":
            raise ValueError("OmniFusion drops the class token: the strategy is 'default'.")
        if not isinstance(self.vision_feature_layer, int):
            raise ValueError(
                "Features of several layers belong to the two-encoder OmniFusion, whose public "
                "description does not fix how they are combined: give one vision_feature_layer."
            )

    def marker_id(self, marker: str) -> int:
        """Id of one of `MARKERS`."""
        first: int = self.text_config.vocab_size
        return first + MARKERS.index(marker)
