"""Model families: what mm_lens needs to know of one, and where they are found.

A family lives outside of this package and is found through the entry point group
`mm_lens.adapters`: a third party adds one by installing a package, without touching this one.

```toml
[project.entry-points."mm_lens.adapters"]
my_family = "my_package.my_module:MyFamily"
```
"""

from mm_lens.layout.tiles import Tile
from mm_lens.model.families.declaration import (
    NO_INPUTS,
    ORIGINAL_SIZES,
    Family,
    Row,
    TowerGrid,
    without_own,
)
from mm_lens.model.families.finding import GROUP, families, family_for
from mm_lens.model.families.undeclared import Undeclared

__all__ = [
    "GROUP",
    "NO_INPUTS",
    "ORIGINAL_SIZES",
    "Family",
    "Row",
    "Tile",
    "TowerGrid",
    "Undeclared",
    "families",
    "family_for",
    "without_own",
]
