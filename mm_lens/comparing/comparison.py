"""`compare`: profiles of several models side by side, on the same data.

Differences between models are paired over documents (`mm_lens.comparing.paired`), and the
statements that papers make about models are tested on them (`mm_lens.comparing.findings`). Where
models differ in their number of layers they are compared at equal *relative* depth, between two
layers by interpolation.
"""

# Imported by the package itself, since otherwise this module would take the name of the function.
# So nothing heavy here: torch comes in when something is compared.
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mm_lens._storage.files import whole_directory
from mm_lens._storage.sums import write_sums
from mm_lens.errors import InputError
from mm_lens.profiling import provenance
from mm_lens.profiling.result import Profile

if TYPE_CHECKING:
    from mm_lens.comparing.bands import Interval
    from mm_lens.comparing.findings import Claims
    from mm_lens.comparing.paired import Curve

COMPARISON_FILE = "comparison.json"
DIFFERENCES = (
    "metric",
    "stream",
    "modality",
    "line",
    "depth",
    "model_a",
    "model_b",
    "layer_a",
    "layer_b",
    "value_a",
    "value_b",
    "difference",
    "low",
    "high",
    "band_low",
    "band_high",
    "p",
    "p_holm",
    "verdict",
    "note",
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `mm_lens.compare` returns.

    Attributes:
        profiles: by label, in the order given, cut down to what all of them hold.
        paired: whether all were shown the same samples, so that differences are paired over these.
        notes: what was left out or could not be done, and why.
        claims: what papers claim of which architecture.
    """

    profiles: Mapping[str, Profile]
    paired: bool
    notes: tuple[str, ...] = ()
    claims: Claims = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Names of the models, each different."""
        return [*self.profiles]

    @property
    def title(self) -> str:
        """Models and data."""
        about = next(iter(self.profiles.values())).provenance["data"]
        pairing = "same samples in each" if self.paired else "samples not paired"
        names = " and ".join(self.labels)
        names = names if len(names) <= 70 else f"{len(self.labels)} models"
        return f"{names} on {about['name']} ({about['n_samples']:,} samples, {pairing})"

    @cached_property
    def table(self) -> pd.DataFrame:
        """All profiles as one table: `model` is the label; `depth` from 0 to 1.

        `line` says which rows belong together over depth: "states", or a component, head or pair.
        """
        parts = []
        for label, curves in self.curves.items():
            parts += [
                curve.table.assign(model=label, depth=curve.depth) for curve in curves.values()
            ]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def curves(self) -> dict[str, dict[tuple[str, ...], Curve]]:
        """Of each model, by stream, modality and metric; of a component, by its name, too."""
        from mm_lens.comparing import paired as pairing

        return {label: pairing.curves(label, p) for label, p in self.profiles.items()}

    @cached_property
    def findings(self) -> pd.DataFrame:
        """What papers claim, measured: one row per number, `mm_lens.comparing.findings.COLUMNS`.

        `verdict` is of the part, `finding_verdict` of the finding in that preset and stream: holds,
        does not hold, cannot be told, or no claim. `note` says why.
        """
        from mm_lens.comparing import findings

        models = {label: p.provenance["model"] for label, p in self.profiles.items()}
        return findings.find(
            self.curves,
            {label: str(about.get("architecture", "")) for label, about in models.items()},
            {label: int(about["n_layers"]) for label, about in models.items()},
            self.paired,
            self.claims,
        )

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Model a minus model b at every depth, for every pair, metric, stream and modality.

        `low` and `high` are a 95 % interval for that depth alone, `p` is two-sided. `band_low` and
        `band_high` hold for all depths of the curve at once (`mm_lens.comparing.bands`) and give
        the `verdict`: higher, lower, or cannot be told; `p_holm` is corrected likewise. Nothing is
        corrected across metrics. Where `note` says why two values cannot be compared, there is
        neither interval nor p.
        """
        rows = [
            row
            for a, b in combinations(self.labels, 2)
            for key in self.curves[a]
            if key in self.curves[b]
            for row in _differences(self.curves[a], self.curves[b], key, self.paired)
        ]
        return pd.DataFrame(rows, columns=list(DIFFERENCES))

    def plot(self, *metrics: str) -> Any:
        """Curves of all models: one metric for both modalities, or an overview, as a figure.

        Without `metrics`, or with several: visual tokens only, one row per metric; without, those
        of the honest preset that stand for their kind.

        Raises:
            InputError: a metric is not in every profile.
        """
        from mm_lens.drawing import comparison as drawing

        return drawing.draw(self, metrics)

    def markdown(self) -> str:
        """The findings as a Markdown table."""
        from mm_lens.comparing import findings_table

        return findings_table.markdown(self.findings)

    def write(self, directory: Path) -> None:
        """Write tables and provenance into an existing directory."""
        self.findings.to_csv(directory / "findings.csv", index=False)
        (directory / "differences.parquet").write_bytes(self.differences.to_parquet(index=False))
        (directory / "findings.md").write_text(self.markdown(), encoding="utf-8")
        text = json.dumps(self.provenance, indent=2, ensure_ascii=False)
        (directory / COMPARISON_FILE).write_text(
            text + "\n", encoding="utf-8", errors="backslashreplace"
        )
        names = ["findings.csv", "differences.parquet", "findings.md", COMPARISON_FILE]
        write_sums(directory, names)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from, ready for JSON."""
        return {
            "compared": provenance.now(),
            "versions": provenance.versions(),
            "paired": self.paired,
            "notes": [*self.notes],
            "profiles": {label: p.provenance for label, p in self.profiles.items()},
        }

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write tables, pictures and compare.html: all, or nothing at all.

        Raises:
            InputError: `path` holds files already; `overwrite` replaces an earlier comparison only.
            OSError: it cannot be written.
        """
        from mm_lens.drawing import comparison as drawing

        with whole_directory(path, COMPARISON_FILE, overwrite) as new:
            self.write(new)
            for _ in drawing.write(self, new):
                pass

    def __repr__(self) -> str:
        from mm_lens.comparing import findings_table

        return findings_table.text(self.findings, self.title, self.notes)

    def _repr_html_(self) -> str:
        from mm_lens.comparing import findings_table

        return findings_table.html(self.findings)


def _differences(
    of_a: Mapping[tuple[str, ...], Curve],
    of_b: Mapping[tuple[str, ...], Curve],
    key: tuple[str, ...],
    paired: bool,
) -> list[tuple[Any, ...]]:
    from mm_lens.comparing import bands
    from mm_lens.comparing import paired as pairing
    from mm_lens.comparing.equal_numbers import at_equal_numbers

    stream, modality, metric, *line = key
    a, b, note = at_equal_numbers(of_a[key], of_b[key], of_a, of_b, key)
    grid = (a if len(a.layer) <= len(b.layer) else b).depth
    at = [(a.at(x), b.at(x)) for x in grid]
    found = [pairing.combine((a, v), (b, -w), paired=paired) for v, w in at]
    if note:
        found = [replace(gap, error=math.nan) for gap in found]
    adjusted = pairing.holm([gap.p() for gap in found])
    return [
        (
            *(metric, stream, modality, "".join(line) or "states", x, a.model, b.model),
            *(v @ a.layer, w @ b.layer, _value(a, v), _value(b, w)),
            *(gap.value, gap.low, gap.high, within.low, within.high, gap.p(), p),
            *(_verdict(within), note),
        )
        for x, (v, w), gap, within, p in zip(
            grid, at, found, bands.band(found), adjusted, strict=True
        )
    ]


def _value(curve: Curve, weights: Any) -> float:
    used = weights != 0
    return float(curve.value[used] @ weights[used])


def _verdict(within: Interval) -> str:
    if within.low > 0 or within.high < 0:
        return "higher" if within.value > 0 else "lower"
    return "cannot be told"


def compare(
    *profiles: Profile | str | Path,
    labels: Sequence[str] | None = None,
    paired: bool = True,
    claims: Claims | None = None,
) -> Comparison:
    """Profiles of several models side by side: differences with intervals, and findings.

    ```python
    comparison = mm_lens.compare("runs/one", "runs/other")
    comparison.findings, comparison.differences     # tables
    comparison.plot("dimension_mle"); comparison.save("runs/compare")
    ```

    Args:
        profiles: two or more, as objects or as directories that `Profile.save` or
            `mm-lens profile` wrote.
        labels: names to show instead of those of the models.
        paired: the profiles are of the same samples, which is checked; differences are then tested
            within samples. False compares different data, as if drawn independently.
        claims: what is claimed of which architecture; by default what the installed families say.

    Raises:
        InputError: fewer than two profiles, labels that do not fit, nothing in common, or different
            data, samples or seeds while `paired` is true.
        DataError: a directory holds no profile.
    """
    if len(profiles) < 2:
        raise InputError(f"{len(profiles)} profiles given. Give two or more to compare.")
    loaded = [p if isinstance(p, Profile) else Profile.load(p) for p in profiles]
    names = _labels(profiles, loaded, labels)
    notes: list[str] = []
    if paired:
        paired = _same_data(dict(zip(names, loaded, strict=True)), notes)
    else:
        notes.append("Compared as independent samples, as asked: differences are not paired.")
    kept = _in_common(dict(zip(names, loaded, strict=True)), notes)
    if claims is None:
        from mm_lens.comparing import findings

        claims = findings.installed_claims()
    return Comparison(kept, paired, tuple(notes), claims)


def _labels(
    given: Sequence[Profile | str | Path], profiles: Sequence[Profile], labels: Sequence[str] | None
) -> list[str]:
    """A different name for each profile."""
    if labels is not None:
        if isinstance(labels, str) or len(labels) != len(profiles) or len({*labels}) < len(labels):
            raise InputError(f"Give {len(profiles)} different labels, not {labels!r}.")
        return [*labels]
    names = [str(profile.provenance["model"]["name"]) for profile in profiles]
    names = [name if len(name) <= 40 else f"…/{Path(name).name[-36:]}" for name in names]
    where = [None if isinstance(p, Profile) else Path(p).name for p in given]
    for kind in (where, [f"#{i}" for i in range(1, len(names) + 1)]):
        if len({*names}) < len(names):
            names = [
                f"{name} ({more})" if more and names.count(name) > 1 else name
                for name, more in zip(names, kind, strict=True)
            ]
    return names


def _same_data(profiles: Mapping[str, Profile], notes: list[str]) -> bool:
    """Whether all are of the same samples; otherwise a note, or an error if they surely are not."""
    for what, where in (
        ("number of samples", ("data", "n_samples")),
        ("samples", ("data", "fingerprint")),
        ("seed", ("options", "seed")),
    ):
        found = {
            label: p.provenance.get(where[0], {}).get(where[1]) for label, p in profiles.items()
        }
        known = {value for value in found.values() if value is not None}
        if len(known) > 1:
            listed = ", ".join(f"{value} ({label})" for label, value in found.items())
            raise InputError(
                f"The profiles differ in their {what}: {listed}. Profile the models on the same "
                "data with the same options, or compare as independent samples: paired=False "
                "(--unpaired)."
            )
    if any(p.provenance.get("data", {}).get("fingerprint") is None for p in profiles.values()):
        notes.append(
            "Not all profiles say which samples they are of (caches and profiles of earlier "
            "versions do not): differences are not paired."
        )
        return False
    if missing := [label for label, p in profiles.items() if p.replicates is None]:
        notes.append(f"{' and '.join(missing)}: no replicates; differences are not paired.")
        return False
    return True


def _in_common(profiles: Mapping[str, Profile], notes: list[str]) -> dict[str, Profile]:
    """The profiles cut down to the metrics, streams and modalities that all hold."""
    kept = {label: profile.table for label, profile in profiles.items()}
    for column in ("metric", "stream", "modality"):
        held = [dict.fromkeys(table[column]) for table in kept.values()]
        common = [name for name in held[0] if all(name in other for other in held)]
        left_out = sorted({name for names in held for name in names} - {*common})
        if not common:
            raise InputError(f"The profiles have no {column} in common: nothing to compare.")
        if left_out:
            notes.append(f"Not in every profile, left out: {column} {', '.join(left_out)}.")
        kept = {label: table[table[column].isin(common)] for label, table in kept.items()}
    return {
        label: Profile(kept[label], profile.provenance, profile.replicates)
        for label, profile in profiles.items()
    }
