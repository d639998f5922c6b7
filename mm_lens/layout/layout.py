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
`text after`, `marker` (what the processor writes in and around an image: row breaks, tags of tiles,
begin and end), or those of the family.
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
from mm_lens.arguments import resolve_rows, suggest
from mm_lens.errors import InputError
from mm_lens.layout.geometry import ImageGeometry
from mm_lens.layout.segments import (
    MARKER,
    SEGMENTS,
    find_segments,
    inside_images,
    share_images,
)

__all__ = ["PAD", "SHOWN", "TEXT", "VISUAL", "ImageGeometry", "TokenLayout", "check_group"]

PAD, TEXT, VISUAL = -1, 0, 1
"""Values of `TokenLayout.modality`."""

SHOWN = 8
"""Rows of a batch that its `repr` describes."""

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
        or group in (*SEGMENTS, MARKER)
        or group in segments
        or _INDEXED.fullmatch(group)
        or (between and int(between[1]) + 1 == int(between[2]))
    ):
        return group
    own = [name for name in segments if not _INDEXED.match(name) and not _BETWEEN.match(name)]
    known = [
        *dict.fromkeys([*_MASKS, *SEGMENTS, MARKER, *own]),
        "image 0, image 1, …",
        "tile 0, tile 1, …",
    ]
    raise InputError(
        f"No group of positions is called {group!r}. Use one of: {', '.join(known)}, "
        f"text between 0 and 1, …{suggest(group, known)}"
    )


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
        marker_ids: Collection[int] = (),
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
            marker_ids: ids of tokens that the processor writes around images. All that stands
                between two placeholders of one image is `marker` too.
            images: geometry of every image of the batch, row after row.

        Raises:
            InputError: the placeholders of a row are not filled exactly by the next images.
        """
        placeholder = input_ids == image_token_id
        shares = share_images(placeholder.sum(dim=1).tolist(), images)
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
        special, marker = (
            torch.isin(input_ids, torch.tensor(sorted(ids), device=device).long()) & ~placeholder
            for ids in (special_ids, marker_ids)
        )
        segment, names = find_segments(image, [len(share) for share in shares])
        segment[special] = names.index("special")
        if bool((marker := marker | (inside_images(image) & ~placeholder)).any()):
            names = (*names, MARKER)
            segment[marker] = names.index(MARKER)
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
        self.require_places("tokens_at")
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

    def require_places(self, what: str) -> None:
        """Refuse what needs to know where image tokens lie.

        Args:
            what: names it in the message.

        Raises:
            InputError: nobody says it: the model was opened with `geometry=False`.
        """
        if bool((self.modality == VISUAL).any()) and not bool((self.tile >= 0).any()):
            raise InputError(
                f"{what} needs to know where image tokens lie in the picture, which is unknown: "
                "the model was opened with geometry=False. Use a group (visual, text, image 0, a "
                "segment) or a mask of positions."
            )

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
