"""Where families are found: through the entry point group `mm_lens.adapters`."""

from __future__ import annotations

from functools import cache

from mm_lens.errors import MMLensError
from mm_lens.model.families.declaration import Family
from mm_lens.plugins import plugins

GROUP = "mm_lens.adapters"


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
            f"No family is installed for {architecture}. Known: {known}. Open it without places "
            "of tokens in the picture: load(…, geometry=False). A package adds one through the "
            f"entry point group {GROUP!r}; see docs/adding_a_family.md."
        ) from None
