"""Where image tokens of LLaVA-NeXT lie, against the model's own features and the light they see."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from mm_lens_adapters import llava_next_layout
from mm_lens_adapters.llava_next_layout import image_geometry, layout
from PIL import Image
from processed_layouts import SIZES, check_features, processed
from tiny import IMAGE_TOKEN, random_image, tiny_llava_next, tiny_tokenizer
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from mm_lens.errors import InputError
from mm_lens.layout.layout import ImageGeometry

# Two to five pixels over many patches: bicubic resizing smears them too far for a tight comparison.
SMEARED = {(5, 5), (3, 4000)}


@pytest.mark.parametrize("side", [12, 20])
@pytest.mark.parametrize("size", SIZES)
def test_token_counts_agree_with_processor_and_model(size: tuple[int, int], side: int) -> None:
    model, processor = tiny_llava_next(image_size=side)
    inputs = processed(processor, IMAGE_TOKEN, [random_image(*size)])
    packed = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    n = len(image_geometry(model, processor, size))
    assert n == len(packed[0])
    assert n == (inputs["input_ids"] == processor.image_token_id).sum()
    assert layout(inputs, model, processor).counts("visual").tolist() == [n]


def test_token_counts_at_the_size_of_llava_v1_6() -> None:
    grid = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14), image_grid_pinpoints=grid
    )
    processor: Any = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=grid,
        ),
        tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    lengths = np.random.default_rng(0).integers(1, 3000, (40, 2)).tolist()
    for size in [*lengths, [480, 640], [1, 5000], [5000, 1], [336, 336]]:
        expected = processor._get_number_of_features(*size, 336, 336) - 1
        assert len(image_geometry(config, processor, tuple(size))) == expected


@pytest.mark.parametrize("text", ["mistral", "llama"])
@pytest.mark.parametrize("size", SIZES)
def test_every_token_holds_the_feature_the_layout_names(size: tuple[int, int], text: str) -> None:
    model, processor = tiny_llava_next(text=text)
    inputs = processed(processor, f"Look: {IMAGE_TOKEN}\nWhat?", [random_image(*size)])
    tokens = layout(inputs, model, processor)
    check_features(model, inputs, tokens)


@pytest.mark.parametrize("size", SIZES)
def test_newlines_end_the_rows(size: tuple[int, int]) -> None:
    model, processor = tiny_llava_next()
    geometry = image_geometry(model, processor, size)
    high = geometry.tile >= 1
    ends = geometry.newline.nonzero().squeeze(1)
    assert (geometry.tile[ends] == -1).all()
    assert (geometry.col[ends] == -1).all()
    assert geometry.grid_row[ends].diff().eq(1).all()
    for p in ends.tolist():
        if high.any():
            assert high[p - 1]
            assert geometry.grid_row[p] == geometry.grid_row[p - 1]
        if p + 1 < len(geometry) and high.any():
            assert geometry.grid_row[p + 1] == geometry.grid_row[p] + 1
    assert ends[-1] == len(geometry) - 1


class Painter:
    """How much of the light painted into an image each visual token of the native model sees.

    The tower is read before its first layer, where a patch knows nothing of its neighbours, and the
    patch embedding is a small multiple of the mean brightness, so that changes are linear in it.
    """

    def __init__(self, size: tuple[int, int], options: dict[str, Any] | None = None) -> None:
        # -5 is the input of layer 0 of 4; transformers 5.23 takes the index 0 for "none".
        model, self.processor = tiny_llava_next(vision_feature_layer=-5, image_size=12)
        for name, value in (options or {}).items():
            setattr(self.processor.image_processor, name, value)
        self.model = model.double()
        weight = model.model.vision_tower.embeddings.patch_embedding.weight
        direction = torch.randn(len(weight), generator=torch.Generator().manual_seed(0))
        weight.data = (2e-4 * direction).double()[:, None, None, None].expand_as(weight)
        self.size = size
        self.black = self.features(np.zeros((1, *size), dtype=np.uint8))[0]
        self.white = self.change(np.full((1, *size), 255, dtype=np.uint8))[0]
        self.geometry = image_geometry(self.model, self.processor, size)

    def features(self, pixels: np.ndarray) -> Tensor:
        images = [Image.fromarray(p).convert("RGB") for p in pixels]
        out = self.processor.image_processor(images, return_tensors="pt")
        with torch.no_grad():
            packed = self.model.get_image_features(
                out["pixel_values"].double(), out["image_sizes"]
            ).pooler_output
        return torch.stack(list(packed))

    def change(self, pixels: np.ndarray) -> Tensor:
        change: Tensor = (self.features(pixels) - self.black).norm(dim=-1)
        return change

    def seen(self, rectangles: list[tuple[int, int, int, int]]) -> Tensor:
        """Change when (x0, y0, x1, y1) turns white, as a share of that of a white image."""
        pixels = np.zeros((len(rectangles), *self.size), dtype=np.uint8)
        for canvas, (x0, y0, x1, y1) in zip(pixels, rectangles, strict=True):
            canvas[y0:y1, x0:x1] = 255
        share: Tensor = self.change(pixels) / self.white
        return share


def random_rectangles(size: tuple[int, int], n: int, share: float = 0.2) -> list[Any]:
    rng = np.random.default_rng(1)
    height, width = (max(1, round(length * share)) for length in size)
    return [
        (x, y, x + width, y + height)
        for y, x in zip(
            rng.integers(0, size[0] - height + 1, n).tolist(),
            rng.integers(0, size[1] - width + 1, n).tolist(),
            strict=True,
        )
    ]


def covered(box: Tensor, rectangle: tuple[int, int, int, int]) -> Tensor:
    """Share of each box that lies in the rectangle."""
    x0, y0, x1, y1 = box.double().unbind(-1)
    width = (x1.clamp(max=rectangle[2]) - x0.clamp(min=rectangle[0])).clamp(min=0)
    height = (y1.clamp(max=rectangle[3]) - y0.clamp(min=rectangle[1])).clamp(min=0)
    return width * height / ((x1 - x0) * (y1 - y0))


def check_light(painter: Painter, tolerance: float) -> None:
    """Every token sees as much of a rectangle as its box overlaps it."""
    box = painter.geometry.box
    blind = box.isnan().any(dim=-1)
    assert (painter.white[blind] == 0).all()
    assert (painter.white[~blind] > 0).all()
    rectangles = random_rectangles(painter.size, 6)
    for rectangle, seen in zip(rectangles, painter.seen(rectangles), strict=True):
        error = (seen - covered(box, rectangle))[~blind].abs()
        assert error.max() < tolerance
        assert error.mean() < tolerance / 8


@pytest.mark.parametrize("size", [size for size in SIZES if size not in SMEARED])
def test_a_token_sees_as_much_light_as_its_box_overlaps(size: tuple[int, int]) -> None:
    check_light(Painter(size), tolerance=0.05)


@pytest.mark.parametrize("size", SIZES)
def test_a_bright_patch_lights_up_the_token_whose_box_covers_it(size: tuple[int, int]) -> None:
    painter = Painter(size)
    inputs = processed(painter.processor, IMAGE_TOKEN, [random_image(*size)])
    tokens = layout(inputs, painter.model, painter.processor)
    first = int(tokens.positions("visual")[0, 0])
    box, exact = painter.geometry.box, 0
    patches = random_rectangles(size, 12, share=0.04)
    for patch, seen in zip(patches, painter.seen(patches), strict=True):
        x0, y0, x1, y1 = patch
        here = tokens.tokens_at(0, (x0 + x1) // 2, (y0 + y1) // 2) - first
        for group in ("base", "tiles"):
            members = tokens.mask(group)[0, first:].nonzero().squeeze(1)
            if not len(members):
                continue
            brightest = members[seen[members].argmax()]
            assert covered(box[brightest], patch) > 0
            (p,) = [p for p in here.tolist() if p in members] or [-1]
            if (
                p >= 0
                and (box[p, :2] <= Tensor([x0, y0])).all() & (Tensor([x1, y1]) <= box[p, 2:]).all()
            ):
                assert brightest == p
                exact += 1
    fits = (box[:, 2] - box[:, 0] >= x1 - x0) & (box[:, 3] - box[:, 1] >= y1 - y0)
    assert exact >= 3 or not fits.any()


@pytest.mark.parametrize(
    "options",
    [
        # The crop loses the rim of the overview and of each tile.
        {"size": {"shortest_edge": 16}},
        {"size": {"shortest_edge": 15}},
        {"size": {"height": 14, "width": 18}},
        # The crop adds a rim; tokens that see nothing but the rim have no box.
        {"size": {"height": 9, "width": 8}},
        {"size": {"shortest_edge": 4}},
        {"do_center_crop": False},
        {"do_resize": False},
        {"do_resize": False, "size": {"shortest_edge": 16}},
        {"do_resize": False, "do_center_crop": False, "crop_size": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (100, 250), (400, 53)])
def test_boxes_follow_every_setting_of_the_image_processor(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    plain = LlavaNextImageProcessorPil(**{"size": {"shortest_edge": 12}, **options})
    painter = Painter(size, {name: getattr(plain, name) for name in options})
    check_light(painter, tolerance=0.15)
    blind = painter.geometry.box.isnan().any(dim=-1) & ~painter.geometry.newline
    assert blind.any() == (options.get("size") == {"shortest_edge": 4})


@pytest.mark.parametrize("size", SIZES)
def test_boxes_tile_the_image(size: tuple[int, int]) -> None:
    model, processor = tiny_llava_next(image_size=20)
    geometry = image_geometry(model, processor, size)
    height, width = size
    for high in (False, True):
        part = (geometry.tile >= 1) if high else (geometry.tile == 0)
        if not part.any():
            continue
        rows, cols = geometry.grid_row[part].long(), geometry.grid_col[part].long()
        box = torch.full((int(rows.max()) + 1, int(cols.max()) + 1, 4), torch.nan)
        box[rows, cols] = geometry.box[part]
        box = box[rows.min() :, cols.min() :]
        assert not box.isnan().any()  # one token for each place of the grid
        x0, y0, x1, y1 = box.unbind(-1)
        assert (x1 > x0).all()
        assert (y1 > y0).all()
        torch.testing.assert_close(x0[:, 1:], x1[:, :-1], rtol=0, atol=0)
        torch.testing.assert_close(y0[1:], y1[:-1], rtol=0, atol=0)
        assert (x0 == x0[:1]).all()
        assert (y0 == y0[:, :1]).all()
        if not high:
            assert (x0[:, 0] == 0).all()
            assert (x1[:, -1] == width).all()
            assert (y0[0] == 0).all()
            assert (y1[-1] == height).all()
        else:  # the packing may cut up to half a patch of the image at each end of one axis
            assert min(x0[0, 0] / width, y0[0, 0] / height) == 0
            assert max(x1[-1, -1] / width, y1[-1, -1] / height) == 1
            assert x0[0, 0] <= (x1 - x0).max() / 2
            assert width - x1[-1, -1] <= (x1 - x0).max() / 2
            assert y0[0, 0] <= (y1 - y0).max() / 2
            assert height - y1[-1, -1] <= (y1 - y0).max() / 2


def test_placeholder_counts_that_do_not_fit_are_refused() -> None:
    model, processor = tiny_llava_next()
    images = [random_image(37, 91), random_image(12, 12)]
    inputs = processed(processor, [IMAGE_TOKEN, IMAGE_TOKEN], images)
    n = [len(image_geometry(model, processor, image.size[::-1])) for image in images]
    assert n[0] != n[1]

    truncated = {**inputs, "input_ids": inputs["input_ids"][:, :-1], "attention_mask": None}
    with pytest.raises(InputError, match=rf"Row 0 has {n[0] - 1} image placeholders.* {n[0]} tok"):
        layout(truncated, model, processor)
    one = {**inputs, "image_sizes": inputs["image_sizes"][:1]}
    with pytest.raises(InputError, match=rf"Row 1 has {n[1]} image placeholders.* 0 tokens"):
        layout(one, model, processor)
    first = {**inputs, "input_ids": inputs["input_ids"][:1], "attention_mask": None}
    with pytest.raises(InputError, match=r"2 images were given.* take only 1"):
        layout(first, model, processor)
    del one["image_sizes"]
    with pytest.raises(InputError, match=rf"Row 0 has {n[0]} image placeholders"):
        layout(one, model, processor)


def test_images_in_the_wrong_order_are_refused() -> None:
    """The model takes them: the total is right. Rows of one image fall through the text."""
    model, processor = tiny_llava_next()
    images = [random_image(37, 91), random_image(12, 12)]
    inputs = processed(processor, [f"{IMAGE_TOKEN} and {IMAGE_TOKEN}"], images)
    swapped = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    swapped["image_sizes"] = inputs["image_sizes"].flip(0)
    swapped["pixel_values"] = inputs["pixel_values"].flip(0)
    with torch.no_grad():
        model(**swapped)
    with pytest.raises(InputError, match=r"Image 1 of row 0 \(91×37 px\).* order"):
        layout(swapped, model, processor)


def test_the_processor_of_another_checkpoint_is_refused() -> None:
    model, processor = tiny_llava_next()
    _, larger = tiny_llava_next(image_size=20)
    with pytest.raises(InputError, match=r"tiles of 20 px.* unpacks tiles of 12 px"):
        image_geometry(model, larger, (64, 64))
    processor.image_processor.image_grid_pinpoints = [[12, 36]]
    with pytest.raises(InputError, match=r"grid of \(12, 36\).* grid of \(24, 24\)"):
        image_geometry(model, processor, (64, 64))


def siglip_model(strategy: Any) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """The tiny model on a tower without a class token."""
    model, processor = tiny_llava_next()
    config = model.config
    config.vision_config = SiglipVisionConfig(
        hidden_size=20,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=36,
        image_size=12,
        patch_size=4,
    )
    config.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = 0
    processor.vision_feature_select_strategy = strategy
    return LlavaNextForConditionalGeneration(config).eval(), processor


def test_tower_without_class_token() -> None:
    model, processor = siglip_model("full")
    inputs = processed(processor, f"{IMAGE_TOKEN} what?", [random_image(37, 91)])
    check_features(model, inputs, layout(inputs, model, processor))


@pytest.mark.parametrize("tower", ["clip keeps its class token", "siglip drops a patch"])
def test_configurations_that_the_model_cannot_pack_are_refused(tower: str) -> None:
    if tower.startswith("clip"):
        model, processor = tiny_llava_next(vision_feature_select_strategy="full")
    else:
        model, processor = siglip_model("default")
    inputs = processed(processor, IMAGE_TOKEN, [random_image(37, 91)])
    with pytest.raises(RuntimeError):
        model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    with pytest.raises(InputError, match="Use vision_feature_select_strategy"):
        layout(inputs, model, processor)


def test_class_token_of_a_single_tile_has_no_place() -> None:
    """The one case that the packing allows to keep it, though no processor makes it."""
    model, processor = tiny_llava_next(vision_feature_select_strategy="full")
    tiling = llava_next_layout._Tiling.of(model.config, processor.image_processor)
    features = torch.arange(1, 11).view(1, 10, 1)
    (native_packed,), _ = model.pack_image_features(
        [features], [(12, 12)], "full", image_newline=torch.zeros(1, dtype=torch.long)
    )
    token = llava_next_layout._packed_indices(tiling, (12, 12), n_tiles=1)
    assert token.tolist() == native_packed.squeeze(1).tolist()
    tile, row, col = llava_next_layout._places(token, tiling)
    assert tile.tolist() == [0] * 10 + [-1]
    assert row.tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, -1]
    assert col.tolist() == [-1, 0, 1, 2, 0, 1, 2, 0, 1, 2, -1]


def test_geometry_is_worked_out_once_and_not_written_to() -> None:
    model, processor = tiny_llava_next()
    first = image_geometry(model, processor, (37, 91))
    assert image_geometry(model.config, processor.image_processor, (37, 91)) is first
    kept = {f.name: getattr(first, f.name) for f in dataclasses.fields(ImageGeometry)}
    kept = {name: value.clone() for name, value in kept.items() if isinstance(value, Tensor)}
    tokens = layout(processed(processor, IMAGE_TOKEN, [random_image(37, 91)]), model, processor)
    tokens.box.zero_()
    tokens.tile.zero_()
    for name, value in kept.items():
        torch.testing.assert_close(getattr(first, name), value, rtol=0, atol=0, equal_nan=True)
