"""The demo OmniFusion: how its fusion is built around the parts that all demo models share."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from mm_lens_adapters.omnifusion import (
    OmniFusionConfig,
    OmniFusionForConditionalGeneration,
    OmniFusionProcessor,
    add_markers,
)
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from demo_training.fusion import Fusion
from demo_training.parts import (
    DEMO,
    FEATURE_LAYER,
    PATCH,
    Size,
    text_config,
    vision_config,
)


class OmniFusionFusion(Fusion):
    """One centre crop, whose tokens attend to each other in the projector."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: Size = DEMO) -> None:
        text = text_config(tokenizer, size)
        add_markers(tokenizer, text.vocab_size)
        square = {"height": size.tile, "width": size.tile}
        self.processor = OmniFusionProcessor(
            image_processor=CLIPImageProcessorPil(
                size=square if size.whole else {"shortest_edge": size.tile},
                crop_size=square,
                do_center_crop=not size.whole,
            ),
            tokenizer=tokenizer,
            patch_size=PATCH,
        )
        config = OmniFusionConfig(
            vision_config=vision_config(size),
            text_config=text,
            vision_feature_layer=FEATURE_LAYER,
            projector_intermediate_size=2 * size.width,  # as 2048 to 1024
            image_seq_length=(size.tile // PATCH) ** 2,
            architectures=["OmniFusionForConditionalGeneration"],
        )
        self.model = OmniFusionForConditionalGeneration(config)

    def connectors(self) -> list[nn.Parameter]:
        """The projector, and the vectors of the markers."""
        model = self.model.model
        return [*model.multi_modal_projector.parameters(), model.get_input_embeddings().special]

    def native(self, pixels: Float[Tensor, "image tile 3 height width"]) -> Tensor:
        """Without the axis of tiles: there is one."""
        return rearrange(pixels, "image 1 ... -> image ...")

    def sees(self, size: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
        """Whether `box` lies within the centre square."""
        height, width = size
        side = min(size)
        left, top = (width - side) // 2, (height - side) // 2
        x0, y0, x1, y1 = box
        return left <= x0 and x1 <= left + side and top <= y0 and y1 <= top + side
