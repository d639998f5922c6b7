"""What a linear block costs: blocks replaced one by one and in runs, and what becomes of answers.

A linearity of 0.98 says that an affine map misses 2 % of the variance of the states. Whether the
answer needs these 2 % is another question; this table asks it. Two comparisons matter: with
`"block"`, that is nothing, the map loses little; with `"identity"` and `"shift"` it loses less than
they do. Where the identity loses nothing either, nobody can tell what the map is good for: the
block does nothing to these tokens that the answer needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mm_lens.arguments import require_kind, require_whole
from mm_lens.causal.effects import EffectTable, effect_table, make_windows
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.rerun import Rerun
from mm_lens.replacing.fitting import require_others
from mm_lens.replacing.maps import HOWS, BlockMaps, How, check_hows, place_hooks, require_maps
from mm_lens.replacing.outcomes import watch


def replacement_table(
    model: VisionLanguageBridge,
    samples: Sequence[tuple[Inputs, Any]],
    maps: BlockMaps,
    *,
    how: Sequence[How] = HOWS[:-1],
    runs: Sequence[int] = (1,),
    stride: int = 1,
    seed: int = 0,
    **options: Any,
) -> EffectTable:
    """Effect on the answers of replacing blocks, each alone and in runs.

    ```python
    table = replacement_table(model, [(inputs, Answers(…)), …], maps, runs=[1, 2, 8])
    table.plot("accuracy")
    ```

    Args:
        model: in evaluation mode.
        samples: inputs and their `Answers`, or metrics of your own; pictures that the maps were
            not fitted on. One question for each picture: rows are resampled.
        maps: from `fit_maps`, of every block.
        how: what takes a block's place; see `mm_lens.replacing.maps`.
        runs: how many blocks are replaced together.
        stride: blocks from the start of one run to that of the next.
        seed: of random directions and intervals.
        options: those of `mm_lens.causal.effects.effect_table`.

    Returns:
        Columns group, how, linearity (held out, the lowest of the run), first_layer, last_layer,
        metric, baseline, value, effect, low, high, p_value, n. Effects are differences from the
        same sample without a replacement. Metrics: accuracy, log_probability, kl (`Outcomes`).

    Raises:
        InputError: see `fit_maps`; a map is missing; a picture was fitted on.
    """
    require_kind("maps", maps, BlockMaps, "what fit_maps returns")
    check_hows(how)
    n_layers = model.cfg.n_layers
    spans = [
        span for run in runs for span in make_windows(n_layers, require_whole("run", run), stride)
    ]
    if not spans:
        raise InputError("runs names how many blocks are replaced together, as [1, 2].")
    require_maps(maps, range(n_layers))
    require_others(maps.seen, samples)
    linear = {k: each.linearity for k, each in maps.blocks.items()}
    trials = [
        {
            "group": maps.group,
            "how": name,
            "linearity": min(linear[k] for k in span),
            "first_layer": span[0],
            "last_layer": span[-1],
        }
        for span in spans
        for name in how
    ]
    placed = {(name, k): maps.blocks[k].replace(name, seed + k) for name in how for k in linear}

    def prepare(rerun: Rerun) -> Any:
        def run(chunk: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
            span = range(chunk[0]["first_layer"], chunk[0]["last_layer"] + 1)
            hooks = [
                hook
                for k in span
                for hook in place_hooks(maps.group, k, [placed[t["how"], k] for t in chunk])
            ]
            return rerun.run(span[0], len(chunk), hooks)

        return run

    about = [
        "replacement",
        maps.group,
        [(k, m.into, m.out, m.update) for k, m in maps.blocks.items()],
        seed,
    ]
    return effect_table(
        model, watch(model, samples), trials, prepare, about=about, seed=seed, **options
    )
