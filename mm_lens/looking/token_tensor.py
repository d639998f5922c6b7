"""Values of tokens as a tensor that can draw itself on the picture.

What the functions of this package return is a tensor in every respect: what is computed with it is
a plain one. The first result alone knows which inputs it is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm_lens._notebook import make_table
from mm_lens.errors import InputError
from mm_lens.model.inputs import Inputs

MOST = 5
"""Layers that are drawn where none are named."""
MOST_VALUES = 400_000
"""Values of heads that one page holds: some 2.5 MB. Of more heads, those with the largest sums."""


class TokenValues(Tensor):
    """Values `[layers, batch, pos]`, or with heads behind the layers, that draw themselves."""

    # Operations give plain tensors: a slice is of other layers, rows and positions.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    inputs: Inputs
    label: str
    layer_names: tuple[str, ...]

    @staticmethod
    def of(values: Tensor, inputs: Inputs, label: str, names: Sequence[str]) -> TokenValues:
        """The same tensor, knowing what it is of.

        Args:
            values: `[layers, batch, pos]` or `[layers, heads, batch, pos]`.
            inputs: what the model was run on.
            label: what the values are, with the unit.
            names: of the layers.
        """
        made = values.as_subclass(TokenValues)
        made.inputs, made.label, made.layer_names = inputs, label, tuple(names)
        return made

    def plot(
        self,
        layers: Sequence[int] | None = None,
        *,
        head: int | None = None,
        row: int = 0,
        image: int = 0,
        limits: tuple[float, float] | None = None,
    ) -> Any:
        """Draw the values on the picture, as a matplotlib figure.

        ```python
        norms(model, inputs).plot([0, 4, 8])
        attention_map(model, inputs).plot(head=3)
        ```

        Args:
            layers: places in the first axis; None takes up to five, evenly spread.
            head: which one; None takes the mean over heads.
            row: row of the batch.
            image: image of this row.
            limits: of the colours; None takes the range of the values.

        Raises:
            InputError: there is no such image, layer or head, or nothing to draw.
        """
        from mm_lens.drawing.on_image import spread_out
        from mm_lens.drawing.overlay import draw_values

        table, label = self._of_row(row, head)
        layers = spread_out(len(table), MOST) if layers is None else layers
        return draw_values(
            self._picture(row, image),
            self.inputs.layout,
            table,
            row=row,
            index=image,
            label=label,
            layers=layers,
            names=[self.layer_names[k] for k in layers if 0 <= k < len(self.layer_names)],
            limits=limits,
        )

    def explore(self, *, head: int | None = None, row: int = 0, image: int = 0) -> Any:
        """The same with a slider over all layers; see `mm_lens.drawing.explore`.

        Args:
            head: which one; None gives a menu of the mean over heads and each of them.
            row: row of the batch.
            image: image of this row.
        """
        from mm_lens.drawing.explorer import explore

        picture, layout = self._picture(row, image), self.inputs.layout
        return explore(picture, layout, self.kinds(row, head), row=row, index=image)

    def kinds(self, row: int = 0, head: int | None = None) -> dict[str, Any]:
        """What a page has to show of a row, as `mm_lens.drawing.explore` takes it, by its name."""
        from mm_lens.drawing.explorer import Shown

        heads = [head] if head is not None or self.ndim == 3 else [None, *self._page_heads(row)]
        kinds = {}
        for each in heads:
            table, label = self._of_row(row, each)
            kinds[label] = Shown(table, self.layer_names)
        left = self.shape[1] - len(heads) + 1
        if len(heads) > 1 and left:
            some = f" (of the {len(heads) - 1} of {self.shape[1]} that have most in any layer)"
            kinds = {k + some if n else k: kind for n, (k, kind) in enumerate(kinds.items())}
        return kinds

    def _page_heads(self, row: int) -> list[int]:
        """Heads that one page holds: all, or those whose values sum to most in any layer."""
        values = self.as_subclass(Tensor)[:, :, row]
        drawn = len(values) * int(values.isfinite().flatten(0, 1).any(0).sum())
        fit = max(1, MOST_VALUES // max(1, drawn) - 1)  # the mean is there, too
        most = values.nansum(-1).amax(0)
        return sorted(most.argsort(descending=True, stable=True)[:fit].tolist())

    def _of_row(self, row: int, head: int | None) -> tuple[Tensor, str]:
        """Values of a row `[layers, pos]`, and what they are."""
        values = self.as_subclass(Tensor)
        if values.ndim == 3:
            if head is not None:
                raise InputError("These values are of no heads: leave head= out.")
            return values[:, row], self.label
        n = values.shape[1]
        if head is None:
            return values[:, :, row].mean(1), f"{self.label}, mean of {n} heads"
        if not -n <= head < n:
            raise InputError(f"There is no head {head}: there are {n}, 0 to {n - 1}.")
        return values[:, head, row], f"{self.label}, head {head % n}"

    def _picture(self, row: int, image: int) -> Any:
        pictures = self.inputs.images[row]
        if not 0 <= image < len(pictures):
            raise InputError(f"Row {row} has {len(pictures)} image(s); there is no image {image}.")
        return pictures[image]

    def _repr_html_(self) -> str:
        """The values on the first picture, with a slider; where there is none, the tensor."""
        try:
            html: str = self.explore()._repr_html_()
            return html
        except InputError as error:  # no picture in the first row, or no value on it
            return make_table([self.label], [[f"{tuple(self.shape)}: {error}"]])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Stored as the plain tensor that it is: files hold no inputs."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def name_layers(numbers: Sequence[int], what: str = "layer") -> list[str]:
    """Names of states or blocks, as they are drawn."""
    return [f"{what} {number}" for number in numbers]
