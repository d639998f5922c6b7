"""`profile`: metrics over the layers of a model, per modality and stream, as one table.

**Layers.** `layer` is the index of a state: 0 is what enters block 0, l what leaves block l - 1
(`mm_lens.states`). A metric of two consecutive states (linearity) stands at the later one, so it
begins with layer 1. The scripts of the paper leave the last layer out; it is in the table.

**Tokens.** A bounded sample per modality, the same at every layer and in both streams
(`mm_lens.sampling`). Intrinsic dimension depends on the number of tokens, so all modalities are cut
to the same number for it: that of the smallest one that has any.

**Cost.** One forward pass of the data per stream, of which only the sampled rows are kept, in
memory or in files; then the metrics, layer by layer. See docs/scaling.md.
"""

# Imported by the package itself, since otherwise this module would take the name of the function.
# So nothing heavy here: torch and the models come in when something is measured (`measure`).
from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pandas as pd

from mm_lens.datasets import Sample
from mm_lens.errors import DataError
from mm_lens.files import whole_directory

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


@runtime_checkable
class Samples(Protocol):
    """A data set: any sequence of samples; one is read when it is taken."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


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
        from mm_lens import plots

        return plots.draw(self, metrics)

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


def profile(
    source: Any,
    dataset: Samples | None = None,
    *,
    streams: Sequence[Literal["residual", "main"]] | None = None,
    modalities: Sequence[Literal["visual", "text", "all"]] | None = None,
    presets: Sequence[str] = ("honest", "paper"),
    metrics: Sequence[str] | None = None,
    tokens: int | None = None,
    batch_size: int = 16,
    samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    data_name: str | None = None,
    run_dir: str | Path | None = None,
    restart: bool = False,
) -> Profile:
    """Measure how a model treats its visual and text tokens, layer by layer.

    ```python
    mm_lens.profile(cache)                                        # the tokens of one cache
    mm_lens.profile(model, mm_lens.datasets.load("easy-vqa"))     # a data set, in bounded memory
    ```

    Args:
        source: a `LayoutCache`, or a model from `mm_lens.load`.
        dataset: the samples, for a model.
        streams: "residual", "main" (without skip connections); None profiles a model on both. For a
            cache it says what its states are; None stands for "residual".
        modalities: of "visual", "text", "all"; None takes all (a cache: all that it holds).
        presets: sets of metrics: "honest" and "paper", the paper's own definitions.
        metrics: names from `mm_lens.metrics.METRICS` instead of presets.
        tokens: most tokens sampled per modality; None takes 12 per dimension of the hidden state,
            but at least 2,048. A cache is used whole.
        batch_size: samples per forward pass. Does not change which tokens are taken.
        samples: use only so many, from the first on. `datasets.load(limit=…)` draws at random.
        seed: of the choice of tokens and of everything random in the metrics.
        progress: show progress bars on stderr.
        on_error: what happens with a sample that cannot be read: "raise", or "skip", which lists it
            in the provenance.
        data_name: name of the data set in the provenance.
        run_dir: a directory for states and finished metrics. They then need disk instead of memory;
            a killed run goes on when called again, and ends with the same table; and several
            processes (`accelerate launch`) share the work. It stays; delete it when the profile is
            saved. None keeps states in memory.
        restart: discard what an earlier run has left in `run_dir`.

    Raises:
        InputError: an argument is wrong, the cache does not hold what is needed, or `run_dir` holds
            another run.
        DataError: no samples, two samples with one id, (`on_error` "raise") an unreadable one, or a
            damaged file in `run_dir`.
        OSError: `run_dir` cannot be written; a full disk, say. What was done before stays.
    """
    from mm_lens import measure

    return measure.run(
        source,
        dataset,
        measure.Options(
            streams=streams,
            modalities=modalities,
            presets=presets,
            metrics=metrics,
            tokens=tokens,
            batch_size=batch_size,
            samples=samples,
            seed=seed,
            progress=progress,
            on_error=on_error,
            data_name=data_name,
            run_dir=run_dir,
            restart=restart,
        ),
    )
