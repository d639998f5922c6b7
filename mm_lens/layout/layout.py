"""What every position of a sequence is: modality, segment, image, tile, row, column, pixel box.

A family adapter turns each image into an `ImageGeometry` (one entry per language-model token, in
the order in which the model inserts them); `TokenLayout.build` spreads these over the image
placeholders of a batch. Nothing here knows a family, a processor or a tiling rule.

Groups name sets of positions, the same words as in hook names:

| group | positions |
|---|---|
| `visual` | every image position, row separators ("newlines") included |
| `text` | attended positions that are not visual, special tokens included |
| `all` | visual and text |
| `pad` | the rest: neither visual nor attended |
| `newline` | learned row separators between image rows |
| `base` | tokens of the overview of a whole image (tile 0) |
| `tiles` | tokens of the high-resolution tiles (tile 1, 2, …) |
| `tile k` | tokens of tile k of any image |
| `image k` | every token of the k-th image of its row, newlines included |
| a segment's name | positions of the segment |

Segments are `special`, `text only` (a row without image), `text before`, `text between k and k+1`,
`text after`, or those of the family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Int, Int8, Int16
from torch import Tensor

from mm_lens._notebook import make_table
from mm_lens.arguments import resolve_rows
from mm_lens.errors import InputError

PAD, TEXT, VISUAL = -1, 0, 1
"""Values of `TokenLayout.modality`."""

SHOWN = 8
"""Rows of a batch that its `repr` describes."""

_SEGMENTS = ("pad", "special", "text only", "text before", "text after")
_MASKS: dict[str, Callable[[TokenLayout], Tensor]] = {
    "visual": lambda layout: layout.modality == VISUAL,
    "text": lambda layout: layout.modality == TEXT,
    "all": lambda layout: layout.modality != PAD,
    "newline": lambda layout: layout.newline,
    "base": lambda layout: layout.tile == 0,
    "tiles": lambda layout: layout.tile >= 1,
}
_INDEXED = re.compile(r"(image|tile) (\d+)")
_BETWEEN = re.compile(r"text between (\d+) and (\d+)")


def check_group(group: str, segments: Sequence[str] = ()) -> str:
    """Return `group` if it can name positions of some layout, whatever the batch holds.

    Args:
        group: the name.
        segments: names that a family gives to its segments, beyond those of the module's table.

    Raises:
        InputError: no layout can have such a group; the message lists the valid ones.
    """
    between = _BETWEEN.fullmatch(group) if isinstance(group, str) else None
    if isinstance(group, str) and (
        group in _MASKS
        or group in _SEGMENTS
        or group in segments
        or _INDEXED.fullmatch(group)
        or (between and int(between[1]) + 1 == int(between[2]))
    ):
        return group
    own = [name for name in segments if not _INDEXED.match(name) and not _BETWEEN.match(name)]
    known = [
        *dict.fromkeys([*_MASKS, *_SEGMENTS, *own]),
        "image 0, image 1, …",
        "tile 0, tile 1, …",
    ]
    raise InputError(
        f"No group of positions is called {group!r}. Use one of: {', '.join(known)}, "
        "text between 0 and 1, …"
    )


@dataclass(frozen=True, eq=False)
class ImageGeometry:
    """Where each language-model token of one image comes from, in the order of insertion.

    `tile` 0 is the overview of the whole image, 1, 2, … are the high-resolution tiles in reading
    order. `row` and `col` count patches inside the tile, `grid_row` and `grid_col` inside the grid
    that all high-resolution tiles form together (before any cropping of padding); for the overview
    they equal `row` and `col`. A newline token has only a `grid_row`: the row that it ends.
    -1 stands where an index does not apply. `box` is (x0, y0, x1, y1) in pixels of the original
    image, clipped to it; NaN where the token stands for no pixel. `size` is (height, width).
    """

    size: tuple[int, int]
    tile: Int16[Tensor, " n"]
    row: Int16[Tensor, " n"]
    col: Int16[Tensor, " n"]
    grid_row: Int16[Tensor, " n"]
    grid_col: Int16[Tensor, " n"]
    newline: Bool[Tensor, " n"]
    box: Float32[Tensor, "n 4"]

    def __len__(self) -> int:
        return len(self.tile)


@dataclass(frozen=True, eq=False, repr=False)
class TokenLayout:
    """What every position of a batch is. All tensors are on one device.

    Attributes:
        modality: PAD (-1), TEXT (0) or VISUAL (1). Newline tokens are VISUAL.
        segment: index into `segment_names`.
        image: index of the image within its row of the batch.
        tile, row, col, grid_row, grid_col, newline, box: see `ImageGeometry`; -1, False and NaN
            at positions that are not visual.
        segment_names: names of the segments.
        image_sizes: for each row of the batch the (height, width) of its images, in pixels.
    """

    modality: Int8[Tensor, "batch pos"]
    segment: Int16[Tensor, "batch pos"]
    image: Int16[Tensor, "batch pos"]
    tile: Int16[Tensor, "batch pos"]
    row: Int16[Tensor, "batch pos"]
    col: Int16[Tensor, "batch pos"]
    grid_row: Int16[Tensor, "batch pos"]
    grid_col: Int16[Tensor, "batch pos"]
    newline: Bool[Tensor, "batch pos"]
    box: Float32[Tensor, "batch pos 4"]
    segment_names: tuple[str, ...]
    image_sizes: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def build(
        cls,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
        *,
        image_token_id: int,
        special_ids: Collection[int] = (),
        images: Sequence[ImageGeometry] = (),
    ) -> TokenLayout:
        """Lay `images` (all images of the batch, in order) over the placeholders in `input_ids`.

        A placeholder is visual even if `attention_mask` hides it: the model puts an image feature
        there all the same. Every other unattended position is padding.

        Args:
            input_ids: tokens, with one `image_token_id` for every image token.
            attention_mask: 1 where attended; None attends everywhere.
            image_token_id: id of the placeholder.
            special_ids: ids of special tokens (BOS, EOS, …); the placeholder may be among them.
            images: geometry of every image of the batch, row after row.

        Raises:
            InputError: the placeholders of a row are not filled exactly by the next images.
        """
        placeholder = input_ids == image_token_id
        shares = _share_images(placeholder.sum(dim=1).tolist(), images)
        device = input_ids.device

        def spread(values: list[Tensor], fill: float | int, dtype: torch.dtype) -> Tensor:
            """Write per-token values at the placeholders, in reading order as the model does."""
            tail = values[0].shape[1:] if values else ()
            out = torch.full((*input_ids.shape, *tail), fill, dtype=dtype, device=device)
            if values:
                out[placeholder] = torch.cat(values).to(device, dtype)
            return out

        def index(name: str) -> Tensor:
            return spread([getattr(geometry, name) for geometry in images], -1, torch.int16)

        image = spread(
            [torch.full((len(g),), k) for share in shares for k, g in enumerate(share)],
            -1,
            torch.int16,
        )
        boxes = [geometry.box for geometry in images] or [torch.empty(0, 4, device=device)]

        attended = torch.ones_like(placeholder) if attention_mask is None else attention_mask != 0
        modality = torch.where(attended, TEXT, PAD).masked_fill(placeholder, VISUAL)
        special = torch.isin(input_ids, torch.tensor(sorted(special_ids), device=device).long())
        segment, names = _segments(image, [len(share) for share in shares])
        segment[special & ~placeholder] = names.index("special")
        segment[modality == PAD] = names.index("pad")
        return cls(
            modality=modality.to(torch.int8),
            segment=segment,
            image=image,
            tile=index("tile"),
            row=index("row"),
            col=index("col"),
            grid_row=index("grid_row"),
            grid_col=index("grid_col"),
            newline=spread([geometry.newline for geometry in images], 0, torch.bool),
            box=spread(boxes, torch.nan, torch.float32),
            segment_names=names,
            image_sizes=tuple(tuple(g.size for g in share) for share in shares),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        return self.modality.shape[0], self.modality.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.modality.device

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that hold at least one position of this batch."""
        tiles = [
            f"tile {k}" for k in range(int(self.tile.max().item()) + 1 if self.tile.numel() else 0)
        ]
        names = dict.fromkeys([*_MASKS, *self.segment_names, *tiles])
        return tuple(name for name in names if self.mask(name).any())

    def mask(self, group: str) -> Bool[Tensor, "batch pos"]:
        """True at the positions of `group` (see the module's table).

        Raises:
            InputError: unknown group; the message lists the valid ones.
        """
        if isinstance(group, str) and group in _MASKS:
            return _MASKS[group](self)
        if indexed := _INDEXED.fullmatch(check_group(group, self.segment_names)):
            return (self.image if indexed[1] == "image" else self.tile) == int(indexed[2])
        if group in self.segment_names:
            return self.segment == self.segment_names.index(group)
        # Say "text between 3 and 4" in a batch of two images.
        return torch.zeros_like(self.newline)

    def counts(self, group: str) -> Int[Tensor, " batch"]:
        """Number of positions of `group` in each row."""
        return self.mask(group).sum(dim=1)

    def valid(self, group: str) -> Bool[Tensor, "batch n_max"]:
        """True where `positions(group)` is real, False where it only fills up a shorter row."""
        counts = self.counts(group)
        n_max = int(counts.max().item()) if len(counts) else 0
        return torch.arange(n_max, device=self.device) < rearrange(counts, "batch -> batch 1")

    def positions(self, group: str) -> Int[Tensor, "batch n_max"]:
        """Positions of `group` in ascending order, row by row; 0 where not `valid(group)`."""
        valid = self.valid(group)
        # A stable sort moves the positions of the group to the front and keeps their order.
        order = self.mask(group).logical_not().to(torch.int8).argsort(dim=1, stable=True)
        return order[:, : valid.shape[1]].masked_fill(~valid, 0)

    def tokens_at(self, image: int, x: int, y: int, row: int = 0) -> Int[Tensor, " n"]:
        """Positions in row `row` of the batch whose box covers the centre of pixel (x, y).

        An anyres image usually gives two: one token of the overview and one of a tile.

        Raises:
            InputError: the row has no such image, or the pixel lies outside of it.
        """
        sizes = self.image_sizes[resolve_rows([row], self.shape[0])[0]]
        if not 0 <= image < len(sizes):
            raise InputError(f"Row {row} has {len(sizes)} image(s); there is no image {image}.")
        height, width = sizes[image]
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"Pixel x={x}, y={y} lies outside of image {image}, "
                f"which is {width} pixels wide and {height} high."
            )
        x0, y0, x1, y1 = self.box[row].unbind(dim=-1)
        covers = (x0 <= x + 0.5) & (x + 0.5 < x1) & (y0 <= y + 0.5) & (y + 0.5 < y1)
        return (covers & (self.image[row] == image)).nonzero().squeeze(1)

    def to(self, device: torch.device | str) -> TokenLayout:
        """The same layout with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def row_of(self, i: int) -> TokenLayout:
        """Row `i` alone, as a layout with batch size 1."""
        return self.take([i])

    def take(self, rows: Sequence[int]) -> TokenLayout:
        """Some rows, in the order asked for; rows may repeat."""
        rows = resolve_rows(rows, self.shape[0])
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        return replace(
            self._map(lambda tensor: tensor[index]),
            image_sizes=tuple(self.image_sizes[row] for row in rows),
        )

    def repeat(self, n: int) -> TokenLayout:
        """The same layout for `n` copies of the batch."""
        return replace(
            self._map(lambda x: repeat(x, "batch ... -> (copies batch) ...", copies=n)),
            image_sizes=self.image_sizes * n,
        )

    def describe(self, most: int | None = None) -> str:
        """One line for each row of the batch: what it holds and how much of it.

        Args:
            most: rows that are described; of the others only the number. None describes all.
        """
        lines = []
        for i in range(self.shape[0])[:most]:
            row = self.row_of(i)
            n = {name: int(row.counts(name).item()) for name in ("visual", "text", "pad")}
            parts = [f"row {i}: {self.shape[1]} positions"]
            parts += [f"{count} {name}" for name, count in n.items()]
            for k, (height, width) in enumerate(self.image_sizes[i]):
                here = row.image == k
                base, tiles, newline = (
                    int((row.mask(name) & here).sum().item())
                    for name in ("base", "tiles", "newline")
                )
                n_tiles = len(row.tile[here & (row.tile > 0)].unique())
                parts.append(
                    f"image {k} of {width}×{height} px = {base} overview + {tiles} from "
                    f"{n_tiles} tile(s) + {newline} newline"
                )
            lines.append(", ".join(parts))
        left = self.shape[0] - len(lines)
        return "\n".join([*lines, *([f"… {left} more rows"] if left else [])])

    def __repr__(self) -> str:
        return f"TokenLayout(\n{self.describe(most=SHOWN)}\n)"

    def _repr_html_(self) -> str:
        """One line for each row: how many positions each group has."""
        groups = [group for group in self.groups if group != "all"]
        counts = [self.counts(group).tolist() for group in groups]
        rows = zip(range(self.shape[0]), *counts, strict=True)
        return make_table(["row", *groups], rows, "positions of each group")

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenLayout:
        tensors: dict[str, Any] = {
            f.name: change(value)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)


def _share_images(
    placeholders: list[int], images: Sequence[ImageGeometry]
) -> list[list[ImageGeometry]]:
    """Give each row of the batch the next images, as many as its placeholders take."""
    remedy = (
        "Use input_ids and image_sizes from one and the same processor call, with the processor "
        "that belongs to this model and without truncation."
    )
    waiting = list(reversed(images))
    shares: list[list[ImageGeometry]] = []
    for i, count in enumerate(placeholders):
        share: list[ImageGeometry] = []
        while waiting and sum(map(len, share)) < count:
            share.append(waiting.pop())
        if (tokens := sum(map(len, share))) != count:
            sizes = (
                ", ".join(f"{g.size[1]}×{g.size[0]} px = {len(g)}" for g in share) or "none left"
            )
            raise InputError(
                f"Row {i} has {count} image placeholders, but its images make {tokens} tokens "
                f"({sizes}). {remedy}"
            )
        shares.append(share)
    if waiting:
        raise InputError(
            f"{len(images)} images were given, but the placeholders of the batch "
            f"take only {len(images) - len(waiting)}. {remedy}"
        )
    return shares


def _segments(
    image: Int16[Tensor, "batch pos"], n_images: list[int]
) -> tuple[Int16[Tensor, "batch pos"], tuple[str, ...]]:
    """Segment of every position and the segments' names, leaving out special tokens and padding."""
    names = list(_SEGMENTS)
    for k in range(max(n_images, default=0)):
        names += [f"text between {k - 1} and {k}"] * (k > 0) + [f"image {k}"]
    per_row = rearrange(torch.tensor(n_images, device=image.device), "batch -> batch 1")
    latest = image.long().cummax(dim=1).values  # the image seen last, -1 before the first
    first = len(_SEGMENTS)  # the images stand at first, first + 2, …, the texts between them
    segment = torch.where(image >= 0, first + 2 * latest, first + 2 * latest + 1)
    segment[(image < 0) & (latest == per_row - 1)] = names.index("text after")
    segment[latest < 0] = names.index("text before")
    alone = repeat(per_row == 0, "batch 1 -> batch pos", pos=image.shape[1])
    segment[alone] = names.index("text only")
    return segment.to(torch.int16), tuple(names)
