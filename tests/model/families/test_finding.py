"""A package of somebody else adds a family, new to TransformerLens too, by entry points alone."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from tiny import random_image, tiny_tokenizer
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import mm_lens
from mm_lens import MMLensError
from mm_lens.model import families

MODULE = """
    import torch
    from PIL import Image
    from mm_lens.model.families import Family
    from mm_lens.layout.layout import ImageGeometry, TokenLayout
    from transformer_lens.model_bridge.supported_architectures.llava import (
        LlavaArchitectureAdapter,
    )
    from transformers import LlavaForConditionalGeneration

    SIDE, PATCH = 12, 4

    class ToyForConditionalGeneration(LlavaForConditionalGeneration):
        pass

    class ToyAdapter(LlavaArchitectureAdapter):
        pass

    class ToyFamily(Family):
        architectures = ("ToyForConditionalGeneration",)

        def __init__(self, model, processor):
            self.processor = processor
            self.image_token_id = model.config.image_token_id

        @classmethod
        def customise(cls, adapter, attention):
            adapter.cfg.attn_implementation = attention

        def inert_hooks(self):
            return {}

        def dead_hooks(self, attention):
            return {}

        def layout(self, inputs):
            images = [] if inputs.get("pixel_values") is None else [
                self.geometry() for _ in inputs["pixel_values"]
            ]
            return TokenLayout.build(
                inputs["input_ids"], inputs.get("attention_mask"),
                image_token_id=self.image_token_id, images=images,
            )

        def geometry(self):
            n = SIDE // PATCH
            k = torch.arange(n * n, dtype=torch.int16)
            row, col = k // n, k % n
            corner = torch.stack([col, row, col + 1, row + 1], dim=-1).float()
            return ImageGeometry(
                size=(SIDE, SIDE), tile=k * 0, row=row, col=col, grid_row=row, grid_col=col,
                newline=torch.zeros(n * n, dtype=torch.bool), box=corner * PATCH,
            )

        def image_token_counts(self, inputs):
            if inputs.get("pixel_values") is None:
                return None
            return [len(self.geometry())] * len(inputs["pixel_values"])

        def probe_image(self):
            return Image.effect_noise((SIDE, SIDE), 80).convert("RGB")
"""


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """An installed distribution: a module, and metadata that names its entry point."""
    (tmp_path / "toy_family.py").write_text(textwrap.dedent(MODULE))
    info = tmp_path / "toy_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mm_lens.adapters]\ntoy = toy_family:ToyFamily\n"
        "[transformer_lens.architectures]\n"
        "ToyForConditionalGeneration = toy_family:ToyAdapter\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # TransformerLens looks for entry points once; what it finds here must not outlive the test.
    monkeypatch.setattr(
        ArchitectureAdapterFactory, "_adapters", dict(ArchitectureAdapterFactory._adapters)
    )
    monkeypatch.setattr(ArchitectureAdapterFactory, "_entry_points_discovered", False)
    families.families.cache_clear()
    yield
    families.families.cache_clear()
    sys.modules.pop("toy_family", None)


def tiny_toy():
    from toy_family import ToyForConditionalGeneration

    tokenizer = tiny_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=20, num_attention_heads=2, num_hidden_layers=3, intermediate_size=36,
            image_size=12, patch_size=4,
        ),
        text_config=LlamaConfig(
            vocab_size=113, hidden_size=24, num_attention_heads=4, num_key_value_heads=2,
            num_hidden_layers=2, intermediate_size=44,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["ToyForConditionalGeneration"],
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}
        ),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    torch.manual_seed(0)
    return ToyForConditionalGeneration(config).eval(), processor


@pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")  # the toy names no dead hooks
def test_a_third_party_adds_a_family(toy_package):
    native, processor = tiny_toy()
    model = mm_lens.load(hf_model=native, processor=processor, attention="eager")
    assert model.report.max_logit_difference == 0.0
    inputs = model.prepare(["What is it?", "No image."], [random_image(30, 20), None])
    assert inputs.layout.counts("visual").tolist() == [9, 0]
    mask = inputs.layout.mask("visual")[..., None]
    view = model.run_with_hooks(
        inputs, fwd_hooks=[("blocks.0.visual.hook_resid_post", lambda x, hook: -x)]
    )
    full = model.run_with_hooks(
        inputs, fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: torch.where(mask, -x, x))]
    )
    assert torch.equal(view, full)


def test_without_the_package_the_family_is_unknown():
    families.families.cache_clear()
    with pytest.raises(MMLensError, match="No family is installed for ToyForConditional"):
        families.family_for("ToyForConditionalGeneration")
