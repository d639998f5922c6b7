"""The token layout against the native model: its packed features, its pixels, its token counts."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from mm_lens_adapters.llava_next_layout import image_geometry, layout
from processed_layouts import Inputs, check_features, processed
from tiny import IMAGE_TOKEN, random_image, tiny_llava_next
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.layout import PAD, TEXT, VISUAL, ImageGeometry, TokenLayout, check_group

# --- by hand ------------------------------------------------------------------------------------

nan = math.nan
FIRST = ImageGeometry(  # an overview token, two of one tile, a newline: 6 pixels wide and 4 high
    size=(4, 6),
    tile=torch.tensor([0, 1, 1, -1], dtype=torch.int16),
    row=torch.tensor([0, 0, 0, -1], dtype=torch.int16),
    col=torch.tensor([0, 1, 2, -1], dtype=torch.int16),
    grid_row=torch.tensor([0, 5, 5, 5], dtype=torch.int16),
    grid_col=torch.tensor([0, 7, 8, -1], dtype=torch.int16),
    newline=torch.tensor([False, False, False, True]),
    box=torch.tensor(
        [[0, 0, 6, 4], [0.5, 1.5, 2.5, 3.5], [2.5, 1.5, 4.5, 3.5], [nan, nan, nan, nan]]
    ),
)
SECOND = ImageGeometry(  # tokens of tiles 1 and 3
    size=(9, 2),
    tile=torch.tensor([1, 3], dtype=torch.int16),
    row=torch.tensor([2, 3], dtype=torch.int16),
    col=torch.tensor([4, 5], dtype=torch.int16),
    grid_row=torch.tensor([6, 7], dtype=torch.int16),
    grid_col=torch.tensor([8, 9], dtype=torch.int16),
    newline=torch.tensor([False, False]),
    box=torch.tensor([[0, 0, 2, 9], [0.0, 0, 2, 9]]),
)
BOS, IMG, IDS = (
    1,
    9,
    [
        [1, 5, 9, 9, 9, 9, 6, 9, 9, 7, 2, 0],
        [0, 0, 1, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        [9, 9, 8, 8, 8, 8, 8, 8, 8, 0, 0, 0],
    ],
)
ATTENDED = [[1] * 11 + [0], [0] * 2 + [1] * 10, [0] + [1] * 8 + [0] * 3]


def by_hand(**options: Any) -> TokenLayout:
    given: Any = {
        "attention_mask": torch.tensor(ATTENDED),
        "image_token_id": IMG,
        "special_ids": (BOS, 2, IMG),
        "images": [FIRST, SECOND, SECOND],
        **options,
    }
    return TokenLayout.build(torch.tensor(IDS), **given)


def test_every_field_by_hand() -> None:
    tokens = by_hand()
    p, t, v = PAD, TEXT, VISUAL
    assert (p, t, v) == (-1, 0, 1)
    modality = [
        [t, t, v, v, v, v, t, v, v, t, t, p],
        [p, p, *[t] * 10],
        [v, v, *[t] * 7, p, p, p],  # the first placeholder is hidden, and visual all the same
    ]
    none = [-1] * 12

    def spread(first: list[int], second: list[int]) -> list[list[int]]:
        """The values of the images of rows 0 and 2 at their placeholders."""
        return [
            [-1, -1, *first, -1, *second, -1, -1, -1],
            none,
            [*second, *none[2:]],
        ]

    expected = {
        "modality": (modality, torch.int8),
        "image": ([*spread([0] * 4, [1, 1])[:2], [0, 0, *none[2:]]], torch.int16),
        "tile": (spread([0, 1, 1, -1], [1, 3]), torch.int16),
        "row": (spread([0, 0, 0, -1], [2, 3]), torch.int16),
        "col": (spread([0, 1, 2, -1], [4, 5]), torch.int16),
        "grid_row": (spread([0, 5, 5, 5], [6, 7]), torch.int16),
        "grid_col": (spread([0, 7, 8, -1], [8, 9]), torch.int16),
        "newline": ([[p == 5 for p in range(12)], [False] * 12, [False] * 12], torch.bool),
    }
    for name, (values, dtype) in expected.items():
        found = getattr(tokens, name)
        assert found.tolist() == values, name
        assert found.dtype == dtype, name
    boxes = torch.full((3, 12, 4), nan)
    boxes[0, 2:6], boxes[0, 7:9], boxes[2, :2] = FIRST.box, SECOND.box, SECOND.box
    torch.testing.assert_close(tokens.box, boxes, rtol=0, atol=0, equal_nan=True)
    assert tokens.image_sizes == (((4, 6), (9, 2)), (), ((9, 2),))
    assert tokens.segment_names == (
        *("pad", "special", "text only", "text before", "text after"),
        *("image 0", "text between 0 and 1", "image 1"),
    )
    assert [[tokens.segment_names[k] for k in row] for row in tokens.segment.tolist()] == [
        [
            *("special", "text before", "image 0", "image 0", "image 0", "image 0"),
            *("text between 0 and 1", "image 1", "image 1", "text after", "special", "pad"),
        ],
        ["pad", "pad", "special", *["text only"] * 9],
        [*["image 0"] * 2, *["text after"] * 7, *["pad"] * 3],
    ]
    assert tokens.segment.dtype == torch.int16
    assert tokens.shape == (3, 12)


def test_texts_between_many_images() -> None:
    row = [IMG, IMG, 5, IMG, IMG, 6, 7, IMG, IMG, IMG, IMG, 8]
    tokens = TokenLayout.build(torch.tensor([row]), image_token_id=IMG, images=[SECOND] * 4)
    assert [tokens.segment_names[k] for k in tokens.segment[0].tolist()] == [
        *("image 0", "image 0", "text between 0 and 1", "image 1", "image 1"),
        *("text between 1 and 2", "text between 1 and 2", "image 2", "image 2"),
        *("image 3", "image 3", "text after"),
    ]


def test_without_options_all_is_text_and_nothing_special() -> None:
    tokens = TokenLayout.build(torch.tensor([[1, 0, 2]]), image_token_id=IMG)
    assert tokens.modality.tolist() == [[TEXT] * 3]
    assert tokens.groups == ("text", "all", "text only")
    assert by_hand(attention_mask=torch.tensor(ATTENDED).bool()).groups == by_hand().groups
    assert by_hand(attention_mask=torch.tensor(ATTENDED) * 7).groups == by_hand().groups
    assert by_hand(attention_mask=None).mask("pad").sum() == 0


def test_groups_by_hand() -> None:
    tokens = by_hand()
    assert tokens.groups == (
        *("visual", "text", "all", "newline", "base", "tiles", "pad", "special"),
        *("text only", "text before", "text after", "image 0", "text between 0 and 1"),
        *("image 1", "tile 0", "tile 1", "tile 3"),
    )
    members = {
        "tile 3": [[8], [], [1]],
        "tile 1": [[3, 4, 7], [], [0]],
        "image 1": [[7, 8], [], []],
        "image 0": [[2, 3, 4, 5], [], [0, 1]],
        "newline": [[5], [], []],
        "base": [[2], [], []],
        "tiles": [[3, 4, 7, 8], [], [0, 1]],
        "text between 5 and 6": [[], [], []],
    }
    for group, rows in members.items():
        mask = tokens.mask(group)
        assert [row.nonzero()[:, 0].tolist() for row in mask] == rows, group
        assert mask.dtype == torch.bool
        longest = max(map(len, rows))
        assert tokens.positions(group).tolist() == [
            row + [0] * (longest - len(row)) for row in rows
        ]
        assert tokens.counts(group).tolist() == [*map(len, rows)]


def test_a_batch_without_rows_has_no_groups() -> None:
    tokens = TokenLayout.build(torch.zeros(0, 3, dtype=torch.long), image_token_id=IMG)
    assert tokens.groups == ()
    assert tokens.positions("text").shape == tokens.valid("text").shape == (0, 0)
    assert tokens.describe() == ""
    assert "image 0" not in tokens.segment_names


def test_a_pixel_belongs_to_the_box_that_holds_its_centre() -> None:
    """A box holds its left and upper edge, and not its right and lower one."""
    tokens = by_hand()

    def at(x: int, y: int) -> list[int]:
        return tokens.tokens_at(0, x, y).tolist()

    # Tile tokens at 3 and 4 reach from x = 0.5 over 2.5 to 4.5 and from y = 1.5 to 3.5.
    assert [at(x, 2) for x in range(6)] == [[2, 3], [2, 3], [2, 4], [2, 4], [2], [2]]
    assert [at(1, y) for y in range(4)] == [[2], [2, 3], [2, 3], [2]]
    assert tokens.tokens_at(1, 1, 8).tolist() == [7, 8]
    assert tokens.tokens_at(0, 0, 0, row=2).tolist() == [0, 1]
    for x, y in ((-1, 0), (6, 0), (0, -1), (0, 4)):
        outside = f"Pixel x={x}, y={y} lies outside of image 0, which is 6 pixels wide and 4 high."
        with pytest.raises(InputError, match=f"^{outside}$"):
            tokens.tokens_at(0, x, y)
    with pytest.raises(InputError, match="no row 3 in a batch of 3"):
        tokens.tokens_at(0, 0, 0, row=3)
    for image in (-1, 2):
        none = rf"^Row 0 has 2 image\(s\); there is no image {image}\.$"
        with pytest.raises(InputError, match=none):
            tokens.tokens_at(image, 0, 0)


def test_what_a_processor_writes_around_images_is_a_marker() -> None:
    tokens = by_hand(marker_ids=[6, 8])
    assert tokens.segment_names[-1] == "marker"
    assert tokens.mask("marker").nonzero().tolist() == [[0, 6], *([2, k] for k in range(2, 9))]
    inside = torch.tensor([[1, 9, 5, 9, 5]])  # a word between two placeholders of one image
    found = TokenLayout.build(inside, image_token_id=IMG, images=[SECOND])
    assert found.mask("marker").tolist() == [[False, False, True, False, False]]
    assert "marker" not in by_hand().segment_names
    behind = by_hand(marker_ids=[7], special_ids=[7])  # both: a marker
    assert behind.mask("marker").nonzero().tolist() == [[0, 9]]


def test_places_are_asked_for_only_where_somebody_says_them() -> None:
    """Image tokens of no tile come from a model that was opened without its geometry."""
    first = dataclasses.replace(FIRST, tile=torch.zeros(4, dtype=torch.int16))
    tokens = TokenLayout.build(torch.tensor([[9] * 4]), image_token_id=IMG, images=[first])
    tokens.require_places("this")
    unknown = dataclasses.replace(tokens, tile=tokens.tile * 0 - 1)
    for ask, what in (
        (lambda: unknown.require_places("this"), "this"),
        (lambda: unknown.tokens_at(0, 0, 0), "tokens_at"),
    ):
        with pytest.raises(InputError, match=f"^{what} needs to know where image tokens lie"):
            ask()
    TokenLayout.build(torch.tensor([[5, 6]]), image_token_id=IMG).require_places("this")


def test_a_description_by_hand() -> None:
    assert by_hand().describe().splitlines() == [
        "row 0: 12 positions, 6 visual, 5 text, 1 pad, "
        "image 0 of 6×4 px = 1 overview + 2 from 1 tile(s) + 1 newline, "
        "image 1 of 2×9 px = 0 overview + 2 from 2 tile(s) + 0 newline",
        "row 1: 12 positions, 0 visual, 10 text, 2 pad",
        "row 2: 12 positions, 2 visual, 7 text, 3 pad, "
        "image 0 of 2×9 px = 0 overview + 2 from 2 tile(s) + 0 newline",
    ]


def test_the_table_of_a_notebook_counts_every_group():
    tokens = by_hand()
    caption, *lines = re.findall(r"<caption>.*?</caption>|<tr>.*?</tr>", tokens._repr_html_())
    assert caption == "<caption>positions of each group</caption>"
    head, *rows = (re.findall(r">([^<>]+)</t[hd]>", line) for line in lines)
    assert head == ["row", *(group for group in tokens.groups if group != "all")]
    assert len(rows) == 3
    for k, row in enumerate(rows):
        assert row == [str(k), *(str(int(tokens.mask(group)[k].sum())) for group in head[1:])]


def test_no_row_is_a_batch_too():
    nothing = by_hand().take([])
    assert nothing.shape == (0, 12)
    assert nothing.image_sizes == ()


def test_a_long_batch_is_shown_in_part():
    tokens = by_hand()
    assert repr(tokens) == f"TokenLayout(\n{tokens.describe()}\n)"
    assert "more" not in repr(tokens)
    many = TokenLayout.build(torch.full((10, 2), 5), image_token_id=IMG)
    assert repr(many) == f"TokenLayout(\n{many.describe(most=8)}\n)"
    assert repr(many).splitlines()[-3:-1] == [
        "row 7: 2 positions, 0 visual, 2 text, 0 pad",
        "… 2 more rows",
    ]


def test_copies_of_a_batch_follow_each_other() -> None:
    tokens = by_hand()
    twice = tokens.repeat(2)
    assert twice.shape == (6, 12)
    assert twice.image_sizes == tokens.image_sizes * 2
    for field in dataclasses.fields(TokenLayout):
        value, copied = getattr(tokens, field.name), getattr(twice, field.name)
        if isinstance(value, Tensor):
            expected = torch.cat([value, value])
            torch.testing.assert_close(copied, expected, rtol=0, atol=0, equal_nan=True)
    assert twice.segment_names == tokens.segment_names


def test_images_that_do_not_fit_are_named() -> None:
    remedy = (
        "Use input_ids and image_sizes from one and the same processor call, with the processor "
        "that belongs to this model and without truncation."
    )
    for images, said in (
        (
            [FIRST, SECOND, FIRST],
            "Row 2 has 2 image placeholders, but its images make 4 tokens (6×4 px = 4)",
        ),
        (
            [FIRST, FIRST, SECOND],
            "Row 0 has 6 image placeholders, but its images make 8 tokens (6×4 px = 4, 6×4 px = 4)",
        ),
        (
            [FIRST, SECOND],
            "Row 2 has 2 image placeholders, but its images make 0 tokens (none left)",
        ),
        (
            [FIRST, SECOND, SECOND, SECOND, FIRST],
            "5 images were given, but the placeholders of the batch take only 3",
        ),
    ):
        with pytest.raises(InputError) as error:
            by_hand(images=images)
        assert str(error.value) == f"{said}. {remedy}"


def test_names_of_groups() -> None:
    for group in ("visual", "pad", "text only", "image 0", "tile 12", "text between 1 and 2"):
        assert check_group(group) == group
    own = ("mine", "image 3", "text between 3 and 4", "pad")
    assert check_group("mine", own) == "mine"
    for group in ("mine", "text between 1 and 1", "text between 2 and 1", "image 0 "):
        with pytest.raises(InputError):
            check_group(group)
    named = dataclasses.replace(by_hand(), segment_names=("pad", "mine"))
    with pytest.raises(InputError, match="text after, marker, mine, image 0"):
        named.mask("his")
    with pytest.raises(InputError) as error:
        check_group("his", own)
    assert str(error.value) == (
        "No group of positions is called 'his'. Use one of: visual, text, all, newline, base, "
        "tiles, pad, special, text only, text before, text after, marker, mine, image 0, "
        "image 1, …, tile 0, tile 1, …, text between 0 and 1, …"
    )


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
    with pytest.raises(InputError, match="no row 4 in a batch of 4"):
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
