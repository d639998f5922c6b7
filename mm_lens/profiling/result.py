"""`Profile`: the table of a model's metrics over its layers, and where it comes from."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from mm_lens._storage.files import whole_directory
from mm_lens._storage.frames import read_frame, require_columns, require_entries
from mm_lens._storage.sums import check_sums, write_sums
from mm_lens._storage.texts import read_json
from mm_lens.arguments import describe_value
from mm_lens.errors import DataError

COLUMNS = (
    "model",
    "stream",
    "layer",
    "hook",
    "component",
    "head",
    "source",
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
PLACE = ("stream", "layer", "modality", "metric", "hook", "head", "source")
"""What tells the values of a profile apart."""
TABLE_FILE, REPLICATES_FILE = "profile.parquet", "replicates.parquet"
SAMPLES_FILE = "samples.parquet"
PROVENANCE_FILE = "provenance.json"
MAX_LAYERS = 100_000
"""Most layers of a model in a profile that is read."""


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """What `mm_lens.profile` returns.

    Attributes:
        table: one row per stream, modality, hook (or head of it) and metric, with the columns
            `COLUMNS`. `component` says what the hook is, whatever its layer; `head` is -1 for all
            heads together and for hooks without heads; `source` is the hook that a metric of two
            hooks leads from to `hook`, "" for others. `low` and `high` are a 95 % interval over
            samples, `chance` is what data without the structure in question would score; both are
            NaN where they do not exist. `warning` is "" if there is nothing to know before using
            the value.
        provenance: versions, seed, model, data, counts, options and time, ready for JSON.
        replicates: one row per value of which there are any: its columns `PLACE`; what it would be
            without each of up to 16 groups of documents (`g0`, …); and `rest`, the standard error
            that these do not show. What `mm_lens.compare` takes the intervals of differences from;
            None in profiles of earlier versions.
        samples: with `per_sample=True`, a row for each sample, stream, state and modality: what its
            tokens are like (`mm_lens.profiling.per_sample.quantities`); else None.
    """

    table: pd.DataFrame
    provenance: dict[str, Any]
    replicates: pd.DataFrame | None = None
    samples: pd.DataFrame | None = None

    @property
    def title(self) -> str:
        """Model and data."""
        data = self.provenance["data"]
        names = f"{_shorten(self.provenance['model']['name'])} on {_shorten(data['name'], 2)}"
        return f"{names} ({data['n_samples']:,} sample{'s' * (data['n_samples'] != 1)})"

    def overview(self) -> pd.DataFrame:
        """Values at the first, middle and last layer: a row per stream and metric that stands for
        its kind, a column per modality."""
        from mm_lens.metrics import METRICS
        from mm_lens.profiling.points.lines import take_first

        table = take_first(self.table)
        known = [name for name in dict.fromkeys(table.metric) if name in METRICS]
        chosen = [name for name in known if METRICS[name].headline - {"paper"}] or known
        rows = {}
        for stream in dict.fromkeys(table.stream):
            for name in chosen:
                here = table[(table.stream == stream) & (table.metric == name)]
                if len(here):
                    cells = here.groupby("modality", sort=False)[["layer", "value"]].apply(_thirds)
                    rows[stream, METRICS[name].label] = cells
        found = pd.DataFrame(rows).T
        return found.rename_axis(["stream", "first · middle · last layer"]).fillna("–")

    def __repr__(self) -> str:
        return f"Profile of {self.title}\n{self._counts()}\n{self.overview().to_string()}"

    def _repr_html_(self) -> str:
        html: str = self.overview().to_html()
        return f"<p><b>{escape(self.title)}</b><br>{escape(self._counts())}</p>{html}"

    def _counts(self) -> str:
        warned = int((self.table.warning != "").sum())
        return (
            f"{len(self.table):,} values of {self.table.metric.nunique()} metrics in .table, "
            f"{warned:,} with a warning (.warnings())"
        )

    def warnings(self) -> dict[str, int]:
        """How many values each warning concerns, most frequent first; # stands for any number."""
        texts = (part for text in self.table.warning for part in text.split("; ") if part)
        return dict(Counter(re.sub(r"\d[\d,.]*", "#", text) for text in texts).most_common())

    def plot(self, *metrics: str) -> Any:
        """Curves over layers as a matplotlib figure: one row per metric, one column per stream.

        Without `metrics`, those that stand for their kind, the paper's own left out.

        Raises:
            InputError: a metric is not in the table.
        """
        from mm_lens.drawing.curves import draw

        return draw(self, metrics)

    def write(self, directory: Path) -> list[str]:
        """Write table, provenance and their checksums into an existing directory.

        Returns:
            The names of the files, without that of the checksums.
        """
        names = [TABLE_FILE, PROVENANCE_FILE]
        (directory / TABLE_FILE).write_bytes(self.table.to_parquet(index=False))
        if self.replicates is not None:
            names.append(REPLICATES_FILE)
            (directory / REPLICATES_FILE).write_bytes(self.replicates.to_parquet(index=False))
        if self.samples is not None:
            names.append(SAMPLES_FILE)
            (directory / SAMPLES_FILE).write_bytes(self.samples.to_parquet(index=False))
        text = json.dumps(self.provenance, indent=2, ensure_ascii=False)
        (directory / PROVENANCE_FILE).write_text(
            text + "\n", encoding="utf-8", errors="backslashreplace"
        )
        write_sums(directory, names)
        return names

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write profile.parquet, replicates.parquet, provenance.json and SHA256SUMS.

        All, or nothing at all.

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
            DataError: there is no profile, it cannot be read, or it was changed since.
        """
        if not isinstance(path, str | PathLike):
            raise DataError(f"A profile is read from a directory, not from {describe_value(path)}.")
        path = Path(path)
        try:
            check_sums(path)
            table = read_frame(path / TABLE_FILE)
            provenance = read_json(path / PROVENANCE_FILE)
            copies = path / REPLICATES_FILE
            replicates = read_frame(copies) if copies.exists() else None
            check_content(table, provenance, replicates)
            samples = read_samples(path / SAMPLES_FILE)
            return Profile(_with_hooks(table), provenance, replicates, samples)
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} holds no readable profile ({error}). Give a directory that "
                "Profile.save or mm-lens profile wrote."
            ) from error


def read_samples(path: Path) -> pd.DataFrame | None:
    """What is known of each sample; None where that was not asked for.

    Raises:
        ValueError: it is no such table.
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    found = read_frame(path)
    texts = dict.fromkeys(("id", "shared", "stream", "modality"), str)
    kinds = {**texts, **dict.fromkeys(("index", "layer", "n_tokens"), int)}
    numbers = [str(name) for name in found if name not in kinds]
    require_columns(path.name, found, {**kinds, **dict.fromkeys(numbers, float)})
    return found


def _thirds(curve: pd.DataFrame) -> str:
    """Values at the first, the middle and the last layer of a curve."""
    values = curve.sort_values("layer").value.tolist()
    at = dict.fromkeys([0, len(values) // 2, len(values) - 1])
    return " · ".join("–" if math.isnan(values[i]) else f"{values[i]:.3g}" for i in at)


def _shorten(name: str, parts: int = 1) -> str:
    """A name as it is; of a long path, the last `parts`, and the data set's name before it."""
    if len(name) <= 40:
        return name
    kind = re.match(r"[a-z][a-z-]+:|", name)
    end = "/".join(Path(name).parts[-parts:])
    return f"{kind[0] if kind else ''}…/{end[-36:]}"


def _with_hooks(table: pd.DataFrame) -> pd.DataFrame:
    """A table of an earlier version, whose hooks are all states, with the columns of this one."""
    if "component" in table:
        return table
    from mm_lens.metrics import METRICS
    from mm_lens.profiling.points.point import component_of

    pairs = {metric for metric in table.metric if getattr(METRICS.get(metric), "arity", 1) == 2}
    hooks = dict(zip(table.layer, table.hook, strict=True))
    source = [
        hooks.get(layer - 1, "") if metric in pairs else ""
        for layer, metric in zip(table.layer, table.metric, strict=True)
    ]
    component = [component_of(hook) for hook in table.hook]
    return table.assign(component=component, head=-1, source=source)[list(COLUMNS)]


_TEXTS = ("model", "stream", "modality", "metric", "hook", "component", "source", "warning")
_NUMBERS = ("value", "low", "high", "n_tokens", "n_over_d", "chance")
_COPY = re.compile(r"g\d+|rest|freedom")
_ADDED = ("component", "head", "source")  # columns that profiles of earlier versions lack


def check_content(
    table: pd.DataFrame, provenance: Any, replicates: pd.DataFrame | None = None
) -> None:
    """See that files hold a profile: everything that is read of it later, of the right kind.

    Raises:
        ValueError: they do not; the message names the file and the column or entry.
    """
    from mm_lens.model.streams import STREAMS
    from mm_lens.profiling.collecting.token_sample import BETWEEN, MODALITIES

    new = "component" in table
    kinds: dict[str, type] = {"layer": int, "head": int}
    kinds.update(dict.fromkeys(_TEXTS, str))
    kinds.update(dict.fromkeys(_NUMBERS, float))
    wanted = {k: kind for k, kind in kinds.items() if new or k not in _ADDED}
    require_columns(TABLE_FILE, table, wanted)
    place = [name for name in PLACE if new or name not in _ADDED]
    _check_places(TABLE_FILE, table, place, {"stream": STREAMS, "modality": (*MODALITIES, BETWEEN)})
    require_entries(
        PROVENANCE_FILE,
        provenance,
        {"model.name": str, "model.n_layers": int, "data.name": str, "data.n_samples": int},
    )
    if not 0 < provenance["model"]["n_layers"] <= MAX_LAYERS:
        raise ValueError(f"{PROVENANCE_FILE} has an impossible model.n_layers")
    if replicates is None or replicates.empty:
        return
    copies = {name: float for name in map(str, replicates) if _COPY.fullmatch(name)}
    told = [name for name in PLACE if name not in ("hook", "head", "source") or name in replicates]
    places = {name: kinds[name] for name in told}
    require_columns(REPLICATES_FILE, replicates, {**places, "rest": float, **copies})
    _check_places(REPLICATES_FILE, replicates, told, {})


def _check_places(
    file: str, frame: pd.DataFrame, place: list[str], known: Mapping[str, Collection[str]]
) -> None:
    for column, names in known.items():
        if unknown := sorted({*frame[column]} - {*names}):
            raise ValueError(f"{file} has the unknown {column} {unknown[0]!r}")
    if ((frame.layer < 0) | (frame.layer > MAX_LAYERS)).any():
        raise ValueError(f"{file} has impossible layers")
    if frame.duplicated(place).any():
        raise ValueError(f"{file} has two rows of one value")
