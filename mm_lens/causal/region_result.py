"""The result of a sweep by region: TransformerLens's, which knows its regions and shows itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor
from transformer_lens.patching import PatchingResult

from mm_lens._notebook import embed_figure, make_table
from mm_lens.errors import InputError
from mm_lens.layout.regions import Regions
from mm_lens.model.inputs import Inputs

SHOWN = 5
"""Patches that notebooks list."""


@dataclass(repr=False)
class RegionPatching(PatchingResult):
    """What the functions of `mm_lens.patching` return: a `PatchingResult` of TransformerLens.

    Attributes:
        regions: what was patched; None for results of several inputs.
        inputs: the corrupted run; None for results of several inputs.
    """

    regions: Regions | None = None
    inputs: Inputs | None = None

    def __getitem__(self, metric_name: str) -> RegionPatching:
        """One metric's result, with the metric axis dropped."""
        one = super().__getitem__(metric_name)
        if one is self:
            return self
        return replace(
            self,
            values=one.values,
            metric_names=one.metric_names,
            baseline=one.baseline,
            has_metric_axis=False,
        )

    def changes(self) -> Tensor:
        """Effects; where the sweep knows no baseline, the values."""
        return self.values if self.baseline is None else self.effect()

    @property
    def is_on_picture(self) -> bool:
        """Whether the regions are of a picture, several of them, and so are drawn on it."""
        if self.regions is None or self.inputs is None or "head" in self.axis_names:
            return False
        layout = self.inputs.layout
        placed = layout.mask("visual") & (layout.tile >= 0)
        inside = (self.regions.masks.to(placed.device) & placed).flatten(1).any(1)
        # Segments and modalities have the whole picture in one region.
        return int(inside.sum()) >= 4 and any(map(len, self.inputs.images))

    def plot(
        self,
        metric: str | None = None,
        *,
        layers: Sequence[int] | None = None,
        row: int | None = None,
        image: int = 0,
    ) -> Any:
        """Effects on the picture, or as a table of colours, as a matplotlib figure.

        ```python
        get_act_patch_resid_pre(…, axis="cell").plot()              # on the picture
        get_act_patch_resid_pre(…, axis="modality").plot()          # layers × modalities
        ```

        Args:
            metric: which one; None takes the first.
            layers: numbers of layers to draw on the picture; None takes up to five.
            row: row of the batch; None takes the first on the picture, and the mean in a table.
            image: image of this row.

        Raises:
            InputError: there is no such metric, layer or row.
        """
        from mm_lens.drawing.effects import draw_patching

        return draw_patching(self, metric, layers=layers, row=row, image=image)

    def explore(self, *, row: int = 0, image: int = 0) -> Any:
        """Effects on the picture with a slider over the layers, of several metrics with a menu.

        ```python
        get_act_patch_resid_pre(…, axis="cell").explore().save("patching.html")
        ```

        Args:
            row: row of the batch.
            image: image of this row.

        Raises:
            InputError: the regions are no places of a picture; there is no such image.
        """
        from mm_lens.drawing.explorer import explore_results

        if self.inputs is None:
            raise InputError(
                f"{self._about()}: results of several inputs have no picture of their own. "
                "Explore each before they are stacked."
            )
        return explore_results(self.inputs, self, row=row, image=image)

    def kinds(self, row: int = 0) -> dict[str, Any]:
        """What a page has to show of a row, as `mm_lens.drawing.explore` takes it, by its name.

        Raises:
            InputError: the regions are no places of a picture.
        """
        from mm_lens.drawing.explorer import Shown

        if not self.is_on_picture:
            raise InputError(
                f"{self._about()}: the regions are no places of a picture, or heads are told "
                "apart, so this cannot be drawn on one. Sweep an axis such as "
                '"cell" or "patch" without heads, or take plot().'
            )
        assert self.regions is not None
        layers = [*dict.fromkeys(self.index_df["layer"])]
        kinds = {}
        for metric in self.metric_names:
            effect = self[metric].changes().float().cpu()
            effect = effect if self.reduced else effect[..., row]
            painted = [self.regions.paint(values)[row] for values in effect]
            label = "effect" if metric == "metric" else f"effect on {metric}"
            kinds[label] = Shown(torch.stack(painted), [f"layer {layer}" for layer in layers])
        return kinds

    def strongest(self, n: int = SHOWN) -> list[tuple[str, float]]:
        """The patches with the largest effects on the first metric, by name; means over rows."""
        effect = self[self.metric_names[0]].changes().float()
        means = (effect if self.reduced else effect.mean(-1)).flatten()
        order = means.abs().nan_to_num(-1).argsort(descending=True)[:n].tolist()
        names = self.index_df[self.axis_names]
        return [(self._name(names.iloc[k]), float(means[k])) for k in order]

    def _name(self, place: Any) -> str:
        return ", ".join(
            str(value) if isinstance(value, str) else f"{axis} {value}"
            for axis, value in place.items()
        )

    def __repr__(self) -> str:
        lines = [f"  {name}: {effect:+.3g}" for name, effect in self.strongest()]
        return "\n".join([f"{self._about()}; the largest effects:", *lines])

    def _repr_html_(self) -> str:
        """The figure, and the patches with the largest effects."""
        rows = [(name, f"{effect:+.3g}") for name, effect in self.strongest()]
        table = make_table(["patched", f"effect on {self.metric_names[0]}"], rows)
        about = self._about()
        return f"<p>{escape(about)}</p>{embed_figure(self.plot(), about)}{table}"

    def _about(self) -> str:
        sizes = " × ".join(
            f"{self.index_df[axis].nunique()} {'' if axis.startswith('grid') else axis}".strip()
            for axis in self.axis_names
        )
        return f"Patching of {sizes}, {', '.join(self.metric_names)}"
