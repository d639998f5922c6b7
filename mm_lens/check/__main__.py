"""`python -m mm_lens.check --family package.module:build`: a family of your own, before it ships.

`build` takes no argument and returns a small model in eval mode and its processor, the same weights
at each call: one is wrapped, the other stays as it is.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from mm_lens.check.suite import run_suite
from mm_lens.errors import InputError
from mm_lens.model.loading import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if something fails."""
    parser = argparse.ArgumentParser(prog="python -m mm_lens.check", description=__doc__)
    parser.add_argument("--family", required=True, metavar="MODULE:FUNCTION", help="the builder")
    parser.add_argument("--only", default="", help="names of checks, with commas")
    parser.add_argument("--sample", action="store_true", help="fewer tokens and blocks")
    given = parser.parse_args(arguments)
    build = _find(given.family)
    native, _ = build()
    wrapped, processor = build()
    model = load(hf_model=wrapped, processor=processor, check=False)
    only = [name.strip() for name in given.only.split(",") if name.strip()]
    table = run_suite(native.eval(), model, only, given.sample)
    print(table)
    return 0 if table.ok else 1


def _find(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"There is no builder {name!r}: {error}. Give MODULE:FUNCTION of a module that can be "
            "imported here, whose function returns a model and its processor."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
