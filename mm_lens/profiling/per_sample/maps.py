"""The maps from each state to the next that other images gave, and what they leave of a sample.

They are those of the held-out linearity (`mm_lens.metrics.linearity`): ridge regression on the
tokens that the profile has sampled, without the massive ones; four folds of images; the strength
chosen inside the training folds. A sample is scored by the map of its own fold, which has not seen
its image. So the sums of its squared errors over all samples are what `linearity_heldout` pools, as
far as all tokens are in the sample.

Memory: `folds x width²` numbers of 32 bit for each stream, modality and state; in the files of a
run directory, if there is one, of which `HELD` bytes are kept at hand.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from mm_lens._storage.hashing import sampling_key
from mm_lens.errors import MMLensWarning
from mm_lens.metrics.numerics.estimates import Estimate, or_nan
from mm_lens.metrics.numerics.linear_fit import FOLDS, LinearFit
from mm_lens.metrics.numerics.massive import KAPPA, massive
from mm_lens.metrics.tokens import Tokens, finite
from mm_lens.model.streams import state_names
from mm_lens.profiling.collecting.token_sample import Modality
from mm_lens.profiling.run_directory import RunDirectory
from mm_lens.profiling.states import SamplingPlan, States

MODALITIES: tuple[Modality, ...] = ("visual", "text")
HELD = 2**30
"""Bytes of maps that are kept at hand where they lie in files."""


@dataclass(frozen=True)
class FoldMaps:
    """The affine maps from one state to the next, one for each fold of images.

    Attributes:
        bounds: first key of each fold but the first.
        inputs: mean state before, of the images that the map was fitted to.
        outputs: mean state after.
        maps: from one to the other, both about their means.
        heavy: lengths before and after from which on a token is massive.
        seed: of the keys.
    """

    bounds: Int64[Tensor, " bounds"]
    inputs: Float64[Tensor, "folds d"]
    outputs: Float64[Tensor, "folds d"]
    maps: Float32[Tensor, "folds d d"]
    heavy: tuple[float, float]
    seed: int

    @property
    def size(self) -> int:
        """Bytes, as good as all of them."""
        return self.maps.numel() * self.maps.itemsize

    def fold_of(self, document: int) -> int:
        """The fold of an image; one that none was fitted to belongs where it would have been."""
        mark = torch.tensor([document])
        key = sampling_key(mark, torch.zeros_like(mark), self.seed)
        return int((self.bounds <= key).sum())

    def error(
        self, before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], document: int
    ) -> float:
        """What the map of other images leaves of a sample's states: a share of their squares.

        The squares are about the mean of the same other images: 1 is no better than that mean. NaN
        where no token is left without the massive ones, or one is not finite.
        """
        fold = self.fold_of(document)
        x, y = before.double(), after.double()
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for states, most in zip((x, y), self.heavy, strict=True):
            kept &= ~(torch.linalg.vector_norm(states, dim=1) > most)
        x = x[kept] - self.inputs[fold].to(x.device)
        y = y[kept] - self.outputs[fold].to(y.device)
        total = float(y.square().sum())
        left = float((y - x @ self.maps[fold].to(x.device).double()).square().sum())
        return left / total if total and math.isfinite(left) else math.nan


def fit_maps(before: Tokens, after: Tokens, seed: int) -> FoldMaps:
    """The maps that the held-out linearity of these tokens rests on.

    Raises:
        UndefinedError: these tokens determine none.
    """
    (before, after), _ = finite(before, after)
    light = ~massive(before, after)
    heavy = [_longest(tokens.x) for tokens in (before, after)]
    fit = LinearFit(before.take(light), after.take(light), seed)
    fit.require("state")
    fit.require_enough()
    marks = fit.tokens.sample
    keys = sampling_key(marks, torch.zeros_like(marks), seed)
    bounds = torch.stack([keys[test].min() for test, _ in fit.folds[1:]]) if fit.folds[1:] else keys
    # The fit has its rows about the means of all of them.
    centres = [tokens.x.double().mean(0) for tokens in (fit.tokens, fit.tokens_next)]
    fitted = [fit.fold_map(fold, "state") for fold in range(len(fit.folds))]
    return FoldMaps(
        bounds.cpu(),
        (centres[0] + torch.stack([each.means[0] for each in fitted])).cpu(),
        (centres[1] + torch.stack([each.means[1] for each in fitted])).cpu(),
        torch.stack([each.map.float() for each in fitted]).cpu(),
        (heavy[0], heavy[1]),
        seed,
    )


def _longest(x: Float[Tensor, "n d"]) -> float:
    """Length from which on a token is massive; see `massive`."""
    norms = torch.linalg.vector_norm(x.double(), dim=1)
    live = norms[norms > 0]
    return KAPPA * float(live.median()) if len(live) else math.inf


class Maps:
    """The maps of all places, and why there is none where there is none.

    Args:
        run: keeps them in files, and shares the work with other processes; None: in memory.
        device: where they are fitted.
        seed: of the folds.
    """

    def __init__(
        self, run: RunDirectory | None, device: str | torch.device = "cpu", seed: int = 0
    ) -> None:
        self.run, self.device, self.seed = run, device, seed
        self.missing: dict[str, str] = {}
        self._held: dict[str, FoldMaps | None] = {}
        self._known: set[str] = set()
        self._n_layers = 0

    def fit(self, states: States, n_layers: int) -> None:
        """Fit all maps between consecutive states that are there.

        Raises:
            DamageError: a file of the run directory is damaged.
        """
        hooks = {point.hook: i for i, point in enumerate(states.points)}
        self._n_layers = n_layers
        links = enumerate(itertools.pairwise(state_names(n_layers)), 1)
        ends = {layer: (hooks[a], hooks[b]) for layer, (a, b) in links if {a, b} <= hooks.keys()}
        pairs = {
            f"{stream}.{modality}.{layer:03}": (stream, modality, *ends[layer])
            for stream in states.streams
            for modality in MODALITIES
            for layer in ends
        }
        self._known |= {*pairs}
        mine = self.run.share([*pairs], self.run.maps() & {*pairs}) if self.run else [*pairs]
        for name in mine:
            found = self._fit(states, *pairs[name])
            if self.run:
                self.run.keep_map(name, _to_bytes(found))
            else:
                self._hold(name, found)

    def _fit(
        self, states: States, stream: str, modality: Modality, start: int, end: int
    ) -> FoldMaps | str:
        before, after = (states.tokens.tokens(stream, k, modality) for k in (start, end))
        if before is None or after is None:
            return f"no {modality} tokens were sampled"
        first = torch.arange(min(states.honest or len(before), len(before)))
        before, after = (each.take(first).to(self.device) for each in (before, after))
        found = or_nan(before, fit_maps, before, after, self.seed)
        return found.warning if isinstance(found, Estimate) else found

    def gather(self) -> None:
        """Wait until the maps of all processes are there."""
        if self.run:
            self.run.gather(self.run.maps, lambda found: self._known <= found)

    def tell(self) -> None:
        """Say where there is no map, and why."""
        found = dict(self.missing)
        if all(not name.endswith(f".{self._n_layers:03}") for name in self._known):
            found |= {"": 'not all states were measured: name "states" among the hooks'}
        if found:
            warnings.warn(
                "linearity_error is NaN where there is no map from the state before, at "
                f"{len(found)} place(s); the first: {next(iter(found.values()))}.",
                MMLensWarning,
                stacklevel=2,
            )

    def at(self, stream: str, modality: str, layer: int) -> FoldMaps | None:
        """The maps that lead to a state; None if there are none.

        Raises:
            DamageError: a file of the run directory is damaged.
        """
        name = f"{stream}.{modality}.{layer:03}"
        if name not in self._known:
            return None
        if name not in self._held:
            assert self.run is not None, "what is in memory is held"
            self._hold(name, _from_bytes(self.run.read_map(name)))
        return self._held[name]

    def _hold(self, name: str, found: FoldMaps | str) -> None:
        if isinstance(found, str):
            self.missing[name] = found
        self._held[name] = None if isinstance(found, str) else found
        while self.run and sum(each.size for each in self._held.values() if each) > HELD:
            first = next(iter(self._held))
            if first == name:
                break
            del self._held[first]


def count_bytes(model: Any, plan: SamplingPlan) -> int:
    """What the maps of a model take, in memory or in files."""
    places = len(plan.streams) * len(MODALITIES) * int(model.cfg.n_layers)
    return places * FOLDS * int(model.cfg.d_model) ** 2 * torch.float32.itemsize


def _to_bytes(found: FoldMaps | str) -> bytes:
    content = io.BytesIO()
    torch.save(found if isinstance(found, str) else {**vars(found)}, content)
    return content.getvalue()


def _from_bytes(content: bytes) -> FoldMaps | str:
    found: Any = torch.load(io.BytesIO(content), weights_only=True)
    return found if isinstance(found, str) else FoldMaps(**found)
