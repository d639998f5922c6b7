"""Prints docs/families.md: every configuration of the tests through the conformance suite.

    PYTHONPATH=tests python docs/families.py [--everything]   # minutes; everything: twice as many

By default the sample: the last block, few painted tokens. `make test-families` runs everything.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import before_transformers  # noqa: F401  torchvision, where it is
import tiny_families
import torch

import mm_lens
from mm_lens.check import CHECKS, Table, run_suite

PAGE = Path(__file__).parent / "families.md"
HEAD = """# Families

Printed by `docs/families.py`: each configuration is a small random model of the real class with its
real processor, run through the conformance suite ({how}). ✓ holds, ✗ fails, ○ is an
exception that the family declares. `mm-lens check MODEL` prints the same for a checkpoint.

{count} configurations of {classes} classes, {checks} checks each: {hold} hold, {fail} fail,
{excepted} are declared exceptions.
"""

NOT_SHIPPED = """
## Not shipped, and why

- Mllama: no position is visual, since its language model sees pictures by cross-attention. Refused.
- Gemma 3n: several streams go on at once between its blocks ([stream, batch, position, width]);
  views, reruns and metrics here know one.
- Kimi K2.5, Molmo2, MiniCPM-V 4.6 and 4.7: TransformerLens has no adapter for their classes.
- Gemma 4, Llama 4: TransformerLens has one; nobody wrote their declarations and ran them yet.

What TransformerLens knows and nobody declared opens with `mm_lens.load(…, geometry=False)`, without
places in the picture.
"""


def run(name: str, sample: bool) -> Table:
    """One configuration."""
    native, _ = tiny_families.build(name)
    wrapped, processor = tiny_families.build(name)
    model = mm_lens.load(hf_model=wrapped, processor=processor, check=False)
    return run_suite(native, model, sample=sample)


def page(tables: dict[str, Table], sample: bool) -> str:
    """The text of the page."""
    signs = {"holds": "✓", "fails": "✗", "exception": "○"}
    every = [outcome for table in tables.values() for outcome in table.outcomes]
    counts = [sum(o.verdict == verdict for o in every) for verdict in signs]
    numbered = {check: k for k, check in enumerate(CHECKS, start=1)}
    lines = [
        HEAD.format(
            how="a sample of blocks and tokens" if sample else "all of it",
            count=len(tables),
            classes=len({table.model for table in tables.values()}),
            checks=len(CHECKS),
            hold=counts[0],
            fail=counts[1],
            excepted=counts[2],
        ),
        "Checks: " + " · ".join(f"{k} {check}" for check, k in numbered.items()) + ".\n",
        "| configuration | class | " + " | ".join(map(str, numbered.values())) + " |",
        "|---|---|" + "---|" * len(numbered),
    ]
    for name, table in tables.items():
        found = [signs[outcome.verdict] for outcome in table.outcomes]
        kind = table.model.removesuffix("ForConditionalGeneration")
        lines.append(f"| {name} | {kind} | " + " | ".join(found) + " |")
    reasons = {
        f"- {name}, {o.check}: {o.reason}."
        for name, table in tables.items()
        for o in table.outcomes
        if o.verdict != "holds"
    }
    if reasons:
        lines += ["", "## Exceptions", "", *sorted(reasons)]
    return "\n".join(lines) + "\n" + NOT_SHIPPED


def main() -> None:
    """Run all and write the page."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sample = "--everything" not in sys.argv
    tables = {}
    for name in tiny_families.CONFIGURATIONS:
        tables[name] = run(name, sample)
        print(name, tables[name], flush=True)
        PAGE.write_text(page(tables, sample))


if __name__ == "__main__":
    main()
