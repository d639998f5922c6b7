"""Effects of interventions over samples: one table with intervals.

Samples are resampled as wholes (rows of the inputs), so intervals and p-values are over images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.utilities.statistics import (
    bootstrap_ci,
    derive_generator,
    sign_flip_permutation_pvalue,
)

from mm_lens._storage.fingerprint import weights_digest
from mm_lens.arguments import describe_value, require_number, require_whole
from mm_lens.causal.sweep import fingerprint, probe_metrics, split_trials, sweep
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics.intervals import MIN_SAMPLES
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logit_metrics import (
    LogitMetrics,
    evaluate_metrics,
    name_metrics,
    read_positions,
)
from mm_lens.model.running.logits import Kept
from mm_lens.model.running.rerun import Rerun

Trial: TypeAlias = "Mapping[str, Any]"
Runner: TypeAlias = "Callable[[Sequence[Trial]], tuple[Tensor, ...]]"


def make_windows(n_layers: int, window: int, stride: int = 1) -> list[range]:
    """Runs of `window` layers, every `stride`; the last one ends with the last layer.

    Raises:
        InputError: no window fits.
    """
    window, stride = require_whole("window", window), require_whole("stride", stride)
    if not 1 <= window <= n_layers or stride < 1:
        raise InputError(f"A window has 1 to {n_layers} layers and a stride of at least 1.")
    starts = list(range(0, n_layers - window + 1, stride))
    if starts[-1] != n_layers - window:
        starts.append(n_layers - window)
    return [range(start, start + window) for start in starts]


class EffectTable(pd.DataFrame):
    """A table of effects: a `DataFrame` that shows each with its interval, and no more rows than
    fit.

    Attributes:
        SHOWN: rows that are shown.
    """

    SHOWN = 20

    @property
    def _constructor(self) -> type[EffectTable]:
        return EffectTable

    def _shown(self) -> pd.DataFrame:
        """The first rows, each effect with its interval in one column."""
        table = pd.DataFrame(self)
        if not {"effect", "low", "high"} <= {*table.columns}:
            return table
        head = table.head(self.SHOWN)
        numbers = head[["effect", "low", "high"]].itertuples(index=False)
        effects = [
            f"{effect:.3g}" if low != low else f"{effect:.3g} [{low:.3g}, {high:.3g}]"
            for effect, low, high in numbers
        ]
        return head.drop(columns=["low", "high"]).assign(effect=effects)

    def _rest(self) -> str:
        left = len(self) - self.SHOWN
        return f"… {left} more rows" if left > 0 else ""

    def plot(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Effects over the layers with their intervals, as a matplotlib figure.

        `table.plot()` draws each metric, `table.plot("accuracy")` one. Other arguments, and tables
        without effects, are pandas's: `pd.DataFrame(table).plot`.

        Raises:
            InputError: the table has no such metric.
        """
        own = {"metric", "effect", "low", "high", "first_layer", "n"} <= {*self.columns}
        if not own or kwargs.keys() - {"metric"} or len(args) > 1:
            return pd.DataFrame(self).plot(*args, **kwargs)
        from mm_lens.drawing.effects import draw_effects

        return draw_effects(pd.DataFrame(self), *args, **kwargs)

    def __repr__(self) -> str:
        return "\n".join(
            filter(None, [self._shown().to_string(index=False, float_format="%.3g"), self._rest()])
        )

    def _repr_html_(self) -> str:
        table: str = self._shown().to_html(index=False, float_format="{:.3g}".format)
        return table + f"<p>{self._rest()}</p>" * bool(self._rest())


def check_samples(samples: Any) -> list[tuple[Inputs, LogitMetrics]]:
    """The samples of a table as a list.

    Raises:
        InputError: they are no pairs of inputs and a metric.
    """
    if isinstance(samples, Inputs) or not isinstance(samples, Iterable):
        found: list[Any] = [samples]
    else:
        found = [*samples]
    for pair in found:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Inputs):
            raise InputError(
                "Samples are a list of pairs (inputs, metric), as [(model.prepare(…), "
                f"Answers(…).logit_diff)]; {describe_value(pair)} is none."
            )
    return found


def warn_of_nan(baseline: Float[Tensor, "metric row"], names: Sequence[str]) -> None:
    """Warn of metrics that are no number without any edit: no effect on them is."""
    for name, values in zip(names, baseline, strict=True):
        if wrong := int((~values.isfinite()).sum()):
            warnings.warn(
                f"The metric {name!r} is no finite number in {wrong} of {len(values)} row(s) "
                "without any edit, so its effects are none. The model's logits, or the metric, "
                "are not finite.",
                MMLensWarning,
                stacklevel=4,
            )


def effect_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, LogitMetrics]],
    trials: Sequence[Trial],
    prepare: Callable[[Rerun], Runner],
    *,
    about: Sequence[Any] = (),
    batch_size: int = 8,
    save: str | PathLike[str] | None = None,
    progress: bool = True,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> EffectTable:
    """Effect of each trial on each metric, over samples.

    Args:
        model: in evaluation mode.
        samples: inputs and their metric, which returns one value for each row.
        trials: interventions, as columns of the table; each starts at its `first_layer`.
        prepare: makes of a run of one sample the function from trials (of one window) to the logits
            of each.
        about: what the trials do, for the file.
        batch_size: trials in one forward pass.
        save: file that keeps what is done, to be resumed after Ctrl-C. To know whether it is
            of the same table costs a forward pass of each sample, `mm_lens.causal.sweep.PROBES`
            calls of its metrics, and one pass over the weights.
        progress: show a progress bar on stderr.
        confidence: of the intervals.
        n_resamples: of the bootstrap and the permutation test.
        seed: of both.

    Returns:
        The columns of the trials and metric, baseline, value, effect, low, high, p_value, n. Fewer
        than `MIN_SAMPLES` samples give no interval and no p-value (NaN), and a warning.

    Raises:
        InputError: there is no sample or no trial, or a metric does not return one value per row.
        DataError: `save` holds another table.
    """
    require_number("confidence", confidence, 0, 1)
    require_whole("n_resamples", n_resamples, 1)
    samples = check_samples(samples)
    if not samples or not trials:
        raise InputError("A table needs at least one sample and one trial.")
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    read = [read_positions(name_metrics(m), inputs.layout.shape) for inputs, m in samples]
    named = [metrics for _, metrics in read]
    names = list(named[0])
    if any(list(metrics) != names for metrics in named):
        raise InputError("Every sample needs the same metrics, by name and order.")
    layers = sorted({trial["first_layer"] for trial in trials})
    rows = [inputs.layout.shape[0] for inputs, _ in samples]
    ends = torch.tensor([0, *rows]).cumsum(0).tolist()
    work: list[list[int]] = []
    spans = [(trial["first_layer"], trial["last_layer"]) for trial in trials]
    for k in range(len(samples)):
        for chunk in split_trials(trials, spans, batch_size):
            work.append([k * len(trials) + i for i in chunk])
    current: list[Any] = [None, None]
    baseline = torch.full((len(names), sum(rows)), torch.nan)
    most = max(rows)

    def run_of(k: int) -> Any:
        if current[0] != k:
            rerun = Rerun(model, samples[k][0], layers, at=read[k][0])
            baseline[:, ends[k] : ends[k + 1]] = evaluate_metrics(named[k], rerun.logits, rows[k])
            current[:] = [k, prepare(rerun)]
        return current[1]

    def evaluate(indices: Sequence[int]) -> Tensor:
        k = indices[0] // len(trials)
        logits = run_of(k)([trials[i % len(trials)] for i in indices])
        found = torch.stack([evaluate_metrics(named[k], part, rows[k]) for part in logits])
        return torch.nn.functional.pad(found, (0, most - rows[k]), value=torch.nan)

    origin = ""
    if save is not None:
        probes = []
        for k, (inputs, _) in enumerate(tqdm(samples, desc="baselines", disable=not progress)):
            with torch.no_grad():
                kept = None if (at := read[k][0]) is None else Kept(model, at)
                logits = model(inputs) if kept is None else kept.of(model(inputs, **kept.options))
            baseline[:, ends[k] : ends[k + 1]] = evaluate_metrics(named[k], logits, rows[k])
            probes.append(probe_metrics(named[k], logits))
        told = [sorted(inputs.tensors.items()) for inputs, _ in samples]
        origin = fingerprint(about, trials, rows, told, weights_digest(model), baseline, probes)
    values = sweep(work, evaluate, origin=origin, save=save, progress=progress, desc="effects")
    values = rearrange(
        values, "(sample trial) metric row -> sample trial metric row", sample=len(samples)
    )
    flat = torch.cat([values[k, ..., : rows[k]] for k in range(len(samples))], -1)
    warn_of_nan(baseline, names)
    effect = flat - baseline
    low, high, p = _estimate_intervals(effect, confidence, n_resamples, seed)
    return EffectTable(
        [
            {
                **trial,
                "metric": name,
                "baseline": float(baseline[m].mean()),
                "value": float(flat[i, m].mean()),
                "effect": float(effect[i, m].mean()),
                "low": float(low[i, m]),
                "high": float(high[i, m]),
                "p_value": float(p[i, m]),
                "n": flat.shape[-1],
            }
            for i, trial in enumerate(trials)
            for m, name in enumerate(names)
        ]
    )


def _estimate_intervals(
    effect: Float[Tensor, "trial metric row"], confidence: float, n_resamples: int, seed: int
) -> tuple[Tensor, ...]:
    """Low, high and p-value of the mean effect [trial, metric]; NaN of too few samples."""
    if effect.shape[-1] < MIN_SAMPLES:
        warnings.warn(
            f"{effect.shape[-1]} sample(s) give no interval: low, high and p_value are NaN. Give "
            f"at least {MIN_SAMPLES}.",
            MMLensWarning,
            stacklevel=4,
        )
        nan = torch.full(effect.shape[:-1], torch.nan)
        return nan, nan, nan
    low, high = bootstrap_ci(
        effect,
        n_resamples=n_resamples,
        confidence=confidence,
        generator=derive_generator(seed, "bootstrap"),
    )
    p = sign_flip_permutation_pvalue(
        effect, n_permutations=n_resamples, generator=derive_generator(seed, "permutation")
    )
    return low, high, p
