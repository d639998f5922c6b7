"""The token layout against the native model: its packed features, its pixels, its token counts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from mm_lens_adapters import llava_next_layout
from mm_lens_adapters.llava_next_layout import image_geometry, layout
from PIL import Image
from tiny import IMAGE_TOKEN, random_image, tiny_llava_next, tiny_tokenizer
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from mm_lens.errors import InputError
from mm_lens.layout.layout import PAD, TEXT, VISUAL, ImageGeometry, TokenLayout, check_group

# (height, width): square, both orientations, odd, smaller than a tile, thinner than a patch.
SIZES = [
    (64, 64),
    (37, 91),
    (91, 37),
    (29, 31),
    (200, 100),
    (100, 250),
    (13, 400),
    (400, 13),
    (1, 40),
    (40, 1),
    (7, 2000),
    (2000, 7),
    (3, 4000),
    (5, 5),
    (1, 1),
]
# Two to five pixels over many patches: bicubic resizing smears them too far for a tight comparison.
SMEARED = {(5, 5), (3, 4000)}

Inputs = dict[str, Any]


def processed(
    processor: LlavaNextProcessor, text: str | list[str], images: list[Image.Image], **kwargs: Any
) -> Inputs:
    kwargs = {"return_tensors": "pt", "padding": True, **kwargs}
    return dict(processor(text=text, images=images or None, **kwargs))


def native(model: LlavaNextForConditionalGeneration, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(projected features [tiles of all images, patches, d], merged sequence [batch, pos, d])."""
    seen: dict[str, Tensor] = {}
    inner = model.model
    handles = [
        inner.multi_modal_projector.register_forward_hook(
            lambda module, args, out: seen.update(projected=out)
        ),
        inner.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(merged=kwargs["inputs_embeds"]),
            with_kwargs=True,
        ),
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen.get("projected", torch.empty(0)), seen["merged"]


# --- how many tokens ----------------------------------------------------------------------------


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


# --- which feature ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["mistral", "llama"])
@pytest.mark.parametrize("size", SIZES)
def test_every_token_holds_the_feature_the_layout_names(size: tuple[int, int], text: str) -> None:
    model, processor = tiny_llava_next(text=text)
    inputs = processed(processor, f"Look: {IMAGE_TOKEN}\nWhat?", [random_image(*size)])
    tokens = layout(inputs, model, processor)
    check_features(model, inputs, tokens)


def check_features(
    model: LlavaNextForConditionalGeneration, inputs: Inputs, tokens: TokenLayout
) -> None:
    """Each position of the native merged sequence is what the layout says it is."""
    projected, merged = native(model, inputs)
    vision: Any = model.config.vision_config
    side = vision.image_size // vision.patch_size
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    tile_of_image = 0  # the tiles of all images stand in one list
    for i in range(tokens.shape[0]):
        for k in range(len(tokens.image_sizes[i])):
            here = (tokens.image[i] == k).nonzero().squeeze(1)
            for p in here.tolist():
                if tokens.newline[i, p]:
                    expected = model.model.image_newline
                else:
                    patch = tokens.row[i, p] * side + tokens.col[i, p]
                    expected = projected[tile_of_image + tokens.tile[i, p], patch]
                torch.testing.assert_close(merged[i, p], expected, rtol=0, atol=0)
            tile_of_image += n_tiles(model.config, tokens.image_sizes[i][k])
        not_visual = tokens.modality[i] != VISUAL
        torch.testing.assert_close(merged[i][not_visual], embedded[i][not_visual], rtol=0, atol=0)
    assert tile_of_image == len(projected)


def n_tiles(config: Any, size: tuple[int, int]) -> int:
    best = select_best_resolution(size, config.image_grid_pinpoints)
    return 1 + int(math.prod(best)) // int(config.vision_config.image_size) ** 2


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


# --- which pixels -------------------------------------------------------------------------------


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


# --- batches ------------------------------------------------------------------------------------

PROMPTS = [
    f"Left {IMAGE_TOKEN} right {IMAGE_TOKEN}{IMAGE_TOKEN} end",
    "no image at all",
    f"{IMAGE_TOKEN}",
    f"Much longer text before {IMAGE_TOKEN}\nand after?",
]
IMAGES = [[(37, 91), (40, 13), (12, 12)], [], [(7, 200)], [(64, 64)]]


@pytest.fixture(params=["left", "right"])
def batch(request: pytest.FixtureRequest) -> tuple[Any, Any, Inputs, TokenLayout]:
    model, processor = tiny_llava_next()
    processor.tokenizer.padding_side = request.param
    images = [random_image(*size) for sizes in IMAGES for size in sizes]
    inputs = processed(processor, PROMPTS, images)
    return model, processor, inputs, layout(inputs, model, processor)


def test_ragged_batch_holds_the_native_features(batch: Any) -> None:
    model, _, inputs, tokens = batch
    assert tokens.image_sizes == tuple(map(tuple, IMAGES))
    check_features(model, inputs, tokens)


def test_ragged_batch_segments(batch: Any) -> None:
    """Against a walk through each row, one token after the other."""
    model, processor, inputs, tokens = batch
    special = {0, 1, 2, 3}  # <unk>, <s>, </s>, <pad> of the tiny tokenizer
    for i, sizes in enumerate(IMAGES):
        lengths = [len(image_geometry(model, processor, size)) for size in sizes]
        image, used = -1, 0
        for p, token in enumerate(inputs["input_ids"][i].tolist()):
            if token == processor.image_token_id:
                if image < 0 or used == lengths[image]:
                    image, used = image + 1, 0
                used += 1
                segment, modality = f"image {image}", VISUAL
            elif not inputs["attention_mask"][i, p]:
                segment, modality = "pad", PAD
            elif token in special:
                segment, modality = "special", TEXT
            else:
                modality = TEXT
                if not sizes:
                    segment = "text only"
                elif image < 0:
                    segment = "text before"
                elif image == len(sizes) - 1:
                    segment = "text after"
                else:
                    segment = f"text between {image} and {image + 1}"
            assert tokens.segment_names[tokens.segment[i, p]] == segment
            assert tokens.modality[i, p] == modality
            assert tokens.image[i, p] == (image if modality == VISUAL else -1)
    assert "text between 0 and 1" in tokens.groups
    assert "text between 1 and 2" not in tokens.groups  # images 1 and 2 follow each other
    assert not tokens.mask("text between 1 and 2").any()


def test_positions_valid_and_counts_against_a_loop(batch: Any) -> None:
    *_, tokens = batch
    assert len(tokens.groups) > 15
    for group in (*tokens.groups, "image 9", "tile 9", "text between 8 and 9"):
        mask, positions = tokens.mask(group), tokens.positions(group)
        valid = tokens.valid(group)
        assert valid.shape == positions.shape
        for i in range(tokens.shape[0]):
            expected = [p for p in range(tokens.shape[1]) if mask[i, p]]
            assert positions[i][valid[i]].tolist() == expected
            assert tokens.counts(group)[i] == len(expected)
            assert valid[i].tolist() == sorted(valid[i].tolist(), reverse=True)
            assert (positions[i][~valid[i]] == 0).all()


def test_groups_divide_the_batch(batch: Any) -> None:
    *_, tokens = batch

    def total(*groups: str) -> Tensor:
        return torch.stack([tokens.mask(group) for group in groups]).sum(dim=0)

    assert (total("visual", "text", "pad") == 1).all()
    assert (total("all", "pad") == 1).all()
    assert (total(*tokens.segment_names) == 1).all()
    assert (total("base", "tiles", "newline") == total("visual")).all()
    assert (total("image 0", "image 1", "image 2") == total("visual")).all()
    assert (total("tile 0") == total("base")).all()
    n = int(tokens.tile.max())
    assert (total(*(f"tile {k}" for k in range(1, n + 1))) == total("tiles")).all()


def test_row_of_is_the_layout_of_the_row_alone(batch: Any) -> None:
    model, processor, inputs, tokens = batch
    images = 0
    for i, sizes in enumerate(IMAGES):
        alone = {name: inputs[name][i : i + 1] for name in ("input_ids", "attention_mask")}
        if sizes:
            alone["image_sizes"] = inputs["image_sizes"][images : images + len(sizes)]
        images += len(sizes)
        expected, row = layout(alone, model, processor), tokens.row_of(i)
        assert row.image_sizes == expected.image_sizes
        for field in dataclasses.fields(TokenLayout):
            value, other = getattr(row, field.name), getattr(expected, field.name)
            if isinstance(value, Tensor) and field.name != "segment":
                torch.testing.assert_close(value, other, equal_nan=True)
        names = [
            [some.segment_names[s] for s in some.segment[0].tolist()] for some in (row, expected)
        ]
        assert names[0] == names[1]
    assert tokens.row_of(-1).image_sizes == (tuple(IMAGES[-1]),)
    with pytest.raises(IndexError):
        tokens.row_of(4)


def test_to_moves_every_tensor(batch: Any) -> None:
    *_, tokens = batch
    moved = tokens.to("meta")
    assert moved.device.type == "meta"
    tensors = [v for v in vars(moved).values() if isinstance(v, Tensor)]
    assert len(tensors) == 10
    assert all(tensor.is_meta for tensor in tensors)


def test_describe_counts_what_each_row_holds(batch: Any) -> None:
    _, processor, inputs, tokens = batch
    lines = tokens.describe().splitlines()
    assert len(lines) == 4
    n = int((inputs["input_ids"][2] == processor.image_token_id).sum())
    n_pad = int((inputs["attention_mask"][2] == 0).sum())
    assert f"{n} visual, 1 text, {n_pad} pad" in lines[2]
    assert "image 0 of 200×7 px = 9 overview + " in lines[2]
    assert "image" not in lines[1]


def test_a_hidden_placeholder_stays_visual() -> None:
    """The model writes the image feature there whatever the attention mask says."""
    model, processor = tiny_llava_next()
    inputs = processed(processor, f"a {IMAGE_TOKEN} b", [random_image(20, 20)])
    before = layout(inputs, model, processor)
    placeholder = inputs["input_ids"] == processor.image_token_id
    inputs["attention_mask"] = inputs["attention_mask"].masked_fill(placeholder, 0)
    after = layout(inputs, model, processor)
    assert (after.modality == before.modality).all()
    check_features(model, inputs, after)


def test_tokens_at_gives_one_token_of_the_overview_and_one_tile(batch: Any) -> None:
    *_, tokens = batch
    found = tokens.tokens_at(0, x=90, y=18, row=0)
    assert tokens.tile[0, found].sign().tolist() == [0, 1]
    for x0, y0, x1, y1 in tokens.box[0, found].tolist():
        assert x0 <= 90.5 < x1
        assert y0 <= 18.5 < y1
    assert (tokens.image[0, found] == 0).all()
    with pytest.raises(InputError, match="91 pixels wide and 37 high"):
        tokens.tokens_at(0, x=91, y=0, row=0)
    with pytest.raises(InputError, match="Row 1 has 0 image"):
        tokens.tokens_at(0, x=0, y=0, row=1)


# --- what cannot be laid out ----------------------------------------------------------------------


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


def test_unknown_groups_are_refused() -> None:
    tokens = TokenLayout.build(torch.tensor([[1, 2]]), image_token_id=9)
    for name in ("vision", "image", "tile -1", "text between 0 and 2", "images 1", ""):
        with pytest.raises(InputError, match="visual, text, all"):
            tokens.mask(name)
        with pytest.raises(InputError, match="visual, text, all"):
            check_group(name)


def test_text_alone_needs_no_image() -> None:
    model, processor = tiny_llava_next()
    tokens = layout(processed(processor, "hi there", []), model, processor)
    assert tokens.positions("visual").shape == (1, 0)
    assert tokens.groups == ("text", "all", "special", "text only")
    assert tokens.box.isnan().all()
    assert tokens.image_sizes == ((),)


# --- other towers ---------------------------------------------------------------------------------


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
