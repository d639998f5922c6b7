"""What mm_lens needs to know of a model family, and where families are found.

A family lives outside of this package and is found through the entry point group
`mm_lens.adapters`: a third party adds one by installing a package, without touching this one.

```toml
[project.entry-points."mm_lens.adapters"]
my_family = "my_package.my_module:MyFamily"
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from PIL import Image

from mm_lens.errors import MMLensError
from mm_lens.layout.layout import TokenLayout
from mm_lens.plugins import plugins

GROUP = "mm_lens.adapters"


@dataclass(frozen=True)
class TowerGrid:
    """What the vision tower sees: tiles of each image, in its order; patches along each side."""

    tiles: Sequence[int]
    rows: int
    cols: int


class Family(ABC):
    """One way of building a vision-language model, for one loaded model and its processor."""

    architectures: ClassVar[tuple[str, ...]]
    """Names of the Hugging Face model classes of the family."""

    image_token_id: int
    """Id of the image placeholder in `input_ids`."""

    @abstractmethod
    def __init__(self, model: Any, processor: Any) -> None: ...

    @classmethod
    @abstractmethod
    def customise(cls, adapter: Any, attention: str) -> None:
        """Change the TransformerLens architecture adapter before the bridge is built.

        `attention` is "sdpa" or "eager".
        """

    @abstractmethod
    def inert_hooks(self) -> Mapping[str, str]:
        """Hook points whose edits cannot reach the output: regular expression and remedy."""

    @abstractmethod
    def dead_hooks(self, attention: str) -> Mapping[str, str]:
        """Hook points that exist in the bridge but never fire: regular expression and remedy."""

    @abstractmethod
    def layout(self, inputs: Mapping[str, Any]) -> TokenLayout:
        """What every position of a forward pass with these keyword arguments is."""

    @abstractmethod
    def image_token_counts(self, inputs: Mapping[str, Any]) -> list[int] | None:
        """How many tokens each image makes; None if the inputs hold no image."""

    def tower_grid(self, inputs: Mapping[str, Any]) -> TowerGrid | None:
        """Tiles and patches that the tower sees, in the order of the images.

        None: it does not run (no image), or the family does not say; then hooks of the tower have
        no profile.
        """
        return None

    @abstractmethod
    def probe_image(self) -> Image.Image:
        """A synthetic image that makes few tokens, for the check at load."""


@cache
def families() -> dict[str, type[Family]]:
    """Every installed family by the architecture it serves."""
    return {
        architecture: family
        for family in plugins(GROUP, "Family")
        for architecture in family.architectures
    }


def family_for(architecture: str) -> type[Family]:
    """The family that serves a Hugging Face model class.

    Raises:
        MMLensError: no installed family does; the message lists those there are.
    """
    try:
        return families()[architecture]
    except KeyError:
        known = ", ".join(sorted(families())) or "none"
        raise MMLensError(
            f"No family is installed for {architecture}. Known: {known}. A package adds one "
            f"through the entry point group {GROUP!r}; see docs/adding_a_family.md."
        ) from None
