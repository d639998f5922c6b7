"""`Profile`: the table of a model's metrics over its layers, and where it comes from."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mm_lens._storage.files import whole_directory
from mm_lens.errors import DataError

COLUMNS = (
    "model",
    "stream",
    "layer",
    "hook",
    "modality",
    "metric",
    "value",
    "low",
    "high",
    "n_tokens",
    "n_over_d",
    "chance",
    "warning",
)
TABLE_FILE, REPLICATES_FILE = "profile.parquet", "replicates.parquet"
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True, eq=False)
class Profile:
    """What `mm_lens.profile` returns.

    Attributes:
        table: one row per stream, modality, layer and metric, with the columns `COLUMNS`. `low` and
            `high` are a 95 % interval over samples, `chance` is what data without the structure in
            question would score; both are NaN where they do not exist. `warning` is "" if there is
            nothing to know before using the value.
        provenance: versions, seed, model, data, counts, options and time, ready for JSON.
        replicates: one row per value of which there are any: its `stream`, `layer`, `modality` and
            `metric`; what it would be without each of up to 16 groups of documents (`g0`, …); and
            `rest`, the standard error that these do not show. What `mm_lens.compare` takes the
            intervals of differences from; None in profiles of earlier versions.
    """

    table: pd.DataFrame
    provenance: dict[str, Any]
    replicates: pd.DataFrame | None = None

    def warnings(self) -> dict[str, int]:
        """How many values each warning concerns, most frequent first; # stands for any number."""
        texts = (part for text in self.table.warning for part in text.split("; ") if part)
        return dict(Counter(re.sub(r"\d[\d,.]*", "#", text) for text in texts).most_common())

    def plot(self, *metrics: str) -> Any:
        """Curves over layers as a matplotlib figure: one row per metric, one column per stream.

        Without `metrics`, those of the honest preset that stand for their family.

        Raises:
            InputError: a metric is not in the table.
        """
        from mm_lens.drawing.curves import draw

        return draw(self, metrics)

    def write(self, directory: Path) -> None:
        """Write table and provenance into an existing directory."""
        self.table.to_parquet(directory / TABLE_FILE, index=False)
        if self.replicates is not None:
            self.replicates.to_parquet(directory / REPLICATES_FILE, index=False)
        text = json.dumps(self.provenance, indent=2, ensure_ascii=False)
        (directory / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write profile.parquet, replicates.parquet and provenance.json: all, or nothing at all.

        Raises:
            InputError: `path` holds files already; `overwrite` replaces an earlier profile only.
            OSError: it cannot be written.
        """
        with whole_directory(path, PROVENANCE_FILE, overwrite) as new:
            self.write(new)

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Read what `save` wrote.

        Raises:
            DataError: there is no profile, or it cannot be read.
        """
        path = Path(path)
        try:
            table = pd.read_parquet(path / TABLE_FILE)
            text = (path / PROVENANCE_FILE).read_text(encoding="utf-8")
            replicates = path / REPLICATES_FILE
            return Profile(
                table,
                json.loads(text),
                pd.read_parquet(replicates) if replicates.exists() else None,
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} holds no readable profile ({error}). Give a directory that "
                "Profile.save or mm-lens profile wrote."
            ) from error
