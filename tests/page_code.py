"""Code of Markdown pages: every block of Python, and whether it is to be run.

```python            runs, in one session with the others of its page, from top to bottom
```python no-run     needs a hub, a GPU or hours: is compiled only
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(python|py)\b([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block: where it stands, and what it says."""

    page: str
    line: int
    runs: bool
    code: str

    @property
    def placed(self) -> str:
        """The code at its own line, so that an error names the line of the page."""
        return "\n" * self.line + self.code


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text("utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: match.start()].count("\n") + 1, not match[2].strip(), match[3])
        for match in FENCE.finditer(text)
    ]


def mark_of(block: Block) -> str:
    """What stands behind the word python where a block begins."""
    line = (ROOT / block.page).read_text("utf-8").splitlines()[block.line - 1]
    return line.removeprefix("```python").strip()
