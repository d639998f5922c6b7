"""The check at load: do the numbers of the bridge mean what they say?

Guaranteed after a clean report, for the prompt and the synthetic image of the check:

1. the bridge's logits equal the native model's (same attention implementation);
2. every hook point fires, but for those known to be dead: asking for one of these raises;
3. an edit at each kind of hook point, per modality, changes the output; so does one of the
   attention pattern, where there is one;
4. at every block, what is written adds up: `resid_pre + attn_out = resid_mid`,
   `resid_mid + mlp_out = resid_post`, and that is the next block's `resid_pre`;
5. a run from a block on (second, middle, last), without an edit, has the logits of the whole pass;
6. a row in a padded batch has the logits of the row alone;
7. a token read with the KV cache has the logits of the whole pass, so that `generate` writes the
   same tokens with the cache and without.
8. where all blocks have attention, text whose queries see no image does not depend on it.

Where the first fails nothing holds, and loading is refused. Where one of the others fails, the
tools that need it refuse (`Report.require`), and the rest works.

Cost: about thirty-five forward passes of a short prompt with one small image.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.checkpoints.building import say
from mm_lens.errors import InputError, MMLensError, lacks_memory
from mm_lens.model.families import Family
from mm_lens.model.families.placeholders import video_token
from mm_lens.model.hooks import PARENTS, names
from mm_lens.model.inputs import Inputs, prepare
from mm_lens.model.parts.guards import guard
from mm_lens.model.report import Report
from mm_lens.model.running.attention_hooks import trying_hooks
from mm_lens.model.running.masks import hide_keys, read_masks
from mm_lens.model.running.rerun import TOLERANCE, Rerun

PROMPT = "What is this?"

LONGER = "What is this, and what is it not?"

NEW_TOKENS = 4
"""Written by the check of the KV cache: the first comes of the prompt, the others of the cache."""


@dataclass(frozen=True)
class Expected:
    """What the native model makes of the inputs of the check."""

    inputs: Inputs
    logits: Float[Tensor, "1 pos d_vocab"]


@torch.no_grad()
def run_native(model: Any, family: Family, processor: Any) -> Expected:
    """Run the native model; to be done before the bridge is built around it.

    Raises:
        MMLensError: it fails, or its logits are not finite.
    """
    name = getattr(model, "name_or_path", "") or "hf_model"
    try:
        inputs = prepare(family, processor, PROMPT, family.probe_image(), device=model.device)
        logits = model(**inputs).logits
    except Exception as error:  # whatever processors and models say to what they were not made for
        if isinstance(error, MMLensError) or lacks_memory(error):
            raise
        raise MMLensError(
            f"{name}: the native model fails on the prompt and the image of the check ({say(error)}"
            "). Its config.json, its processor and its tokenizer are not of one checkpoint."
        ) from error
    if not bool(logits.isfinite().all()):
        spoilt = [key for key, x in model.named_parameters() if not bool(x.isfinite().all())]
        cause = (
            f"its weights are not either, {spoilt[0]} among {len(spoilt):,}. Get the file again"
            if spoilt
            else f"its states overflow in {str(model.dtype)[6:]}. Load it in another dtype "
            "(dtype=torch.float32, --dtype float32)"
        )
        raise MMLensError(
            f"{name}: the native model's logits are not finite numbers, since {cause}."
        )
    return Expected(inputs, logits)


@torch.no_grad()
def self_check(model: Any, expected: Expected) -> Report:
    """Check an instrumented bridge; see the module's text for what is guaranteed."""
    report, inputs = Report(), expected.inputs
    fired: set[str] = set()

    def count(tensor: Any, hook: Any) -> None:
        fired.add(hook.name)

    points = {point.name: point for point in model.hook_dict.values()}
    handles = [point.add_hook(count) for point in points.values()]
    with trying_hooks(model):
        logits = model(inputs)
    for handle, point in zip(handles, points.values(), strict=True):
        model._remove_temporary_hook(point, "fwd", handle)

    report.max_logit_difference = (logits - expected.logits).abs().max().item()
    spread = expected.logits.float().std().item()
    if not report.max_logit_difference <= TOLERANCE.get(logits.dtype, 0.2) * spread:
        report.add(
            "error",
            f"The bridge's logits differ from the native model's by "
            f"{report.max_logit_difference:.3g} (their standard deviation is {spread:.3g}).",
        )
    _check_dead(model, report, points.keys() - fired)
    _check_edits(model, report, inputs, logits)
    _check_pattern(model, report, inputs, logits)
    _check_residual(model, report, inputs)
    _check_rerun(model, report, inputs)
    _check_batch(model, report)
    _check_cache(model, report, inputs)
    _check_masks(model, report, inputs)
    return report


def _check_dead(model: Any, report: Report, silent: set[str]) -> None:
    silent = {name for name in silent if model._gated_hook_reason(name) is None}
    report.dead_hooks = tuple(sorted(silent))
    unknown = sorted(name for name in silent if model._remedy_if_dead(name) is None)
    model._declare_dead(unknown, "The check at load found that nothing fires it.")
    if unknown:
        report.add(
            "warning",
            f"{len(unknown)} hook points never fire: {', '.join(unknown[:5])}"
            f"{', …' if len(unknown) > 5 else ''}. Asking for one raises.",
        )
    if known := len(silent) - len(unknown):
        report.add("note", f"{known} hook points never fire, as is known of this family.")


def _check_edits(model: Any, report: Report, inputs: Inputs, logits: Tensor) -> None:
    """Edit one kind of activation at a time in the middle of the model.

    The edit mirrors each vector: a change of scale would be lost in the next norm.
    """
    for hook in PARENTS:
        for group in ("visual", "text"):
            name = _find_point(model, f"{group}.hook_{hook}")
            if name is None or name in report.dead_hooks:
                continue

            hooks = [(name, lambda rows, hook: rows.flip(-1))]
            edited = model.run_with_hooks(inputs, fwd_hooks=hooks)
            if torch.equal(edited, logits):
                report.add("warning", f"An edit at {name} does not change the output.")


def _find_point(model: Any, tail: str) -> str | None:
    """The hook point of this name in the block nearest to the middle that has it."""
    middle = model.cfg.n_layers // 2
    for layer in sorted(range(model.cfg.n_layers), key=lambda k: abs(k - middle)):
        if (name := f"blocks.{layer}.{tail}") in model._hook_registry:
            return name
    return None


def _check_pattern(model: Any, report: Report, inputs: Inputs, logits: Tensor) -> None:
    """Where attention is left to the native model, its pattern is a report: edits do nothing."""
    for hook in ("hook_attn_scores", "hook_pattern"):
        name = _find_point(model, f"attn.{hook}")
        if name is None or model._remedy_if_dead(name):
            continue

        def mirror(scores: Tensor, hook: Any) -> Tensor:
            return scores.flip(-1)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TransformerLens's own, of the same fault
            edited = model.run_with_hooks(inputs, fwd_hooks=[(name, mirror)])
        if not torch.equal(edited, logits):
            continue
        report.add("error", f"An edit at {name} does not change the output.", spoils="pattern")
        for block in range(model.cfg.n_layers):
            if point := model._hook_registry.get(f"blocks.{block}.attn.{hook}"):
                guard(
                    point,
                    "Attention is computed by the native model, which reports its weights "
                    "afterwards. Edit attn.hook_q, hook_k, hook_v or hook_z, or knock out edges.",
                )


def _check_residual(model: Any, report: Report, inputs: Inputs) -> None:
    """At every block, does what is written add up to what comes out?"""
    points = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    _, cache = model.run_with_cache(inputs, names_filter=names(points))
    real = inputs.layout.mask("all")
    worst: tuple[float, str] = (0.0, "")
    for layer in range(model.cfg.n_layers):
        found = {
            short: cache.cache_dict[name].float()[real.to(cache.cache_dict[name].device)]
            for short in points
            if (name := f"blocks.{layer}.{PARENTS[short]}") in cache.cache_dict
        }
        below = f"blocks.{layer - 1}.{PARENTS['resid_post']}"
        if below in cache.cache_dict:
            found["below"] = cache.cache_dict[below].float()[
                real.to(cache.cache_dict[below].device)
            ]
        for parts, total in _sums({*found}):
            terms = [found[part].to(found[total].device) for part in parts]
            scale = torch.stack([x.abs() for x in (*terms, found[total])]).sum(0)
            error = (torch.stack(terms).sum(0) - found[total]).abs()
            eps = torch.finfo(cache.cache_dict[f"blocks.{layer}.{PARENTS['resid_pre']}"].dtype).eps
            excess = float((error / (4 * eps * scale + 1e-30)).max())
            if not excess <= max(1.0, worst[0]):
                names_ = [x if x != "below" else "the last block's resid_post" for x in parts]
                text = f"{' + '.join(names_)} is not {total} at block {layer}"
                worst = excess, f"{text} (they differ by up to {float(error.max()):.3g})"
    if worst[1]:
        report.add(
            "error",
            f"What the blocks write does not add up: {worst[1]}. The model scales it, or adds "
            "something between blocks. The stream cannot be decomposed into it.",
            spoils="residual",
        )


def _sums(have: set[str]) -> list[tuple[tuple[str, ...], str]]:
    """Which activations of a block should add up to which."""
    sums: list[tuple[tuple[str, ...], str]] = [
        (("resid_pre", "attn_out"), "resid_mid"),
        (("resid_mid", "mlp_out"), "resid_post"),
        (("below",), "resid_pre"),
    ]
    if "resid_mid" not in have:  # attention and MLP side by side
        sums.append((("resid_pre", "attn_out", "mlp_out"), "resid_post"))
    return [(parts, total) for parts, total in sums if {*parts, total} <= have]


def _check_rerun(model: Any, report: Report, inputs: Inputs) -> None:
    """From the second block, where features may have entered; the middle; and the last."""
    layers = sorted({min(1, (last := model.cfg.n_layers - 1)), model.cfg.n_layers // 2, last})
    remedy = "Effects measured by running blocks again would be wrong."
    try:
        rerun = Rerun(model, inputs, layers)
        differences = {layer: rerun.difference(layer) for layer in layers}
    except Exception as error:  # whatever the model's own code says to embeddings
        if lacks_memory(error):
            raise
        report.add(
            "error", f"A run from block {layers[0]} on fails: {error}. {remedy}", spoils="rerun"
        )
        return
    for layer, difference in differences.items():
        if not difference <= TOLERANCE.get(rerun.logits.dtype, 0.2):
            report.add(
                "error",
                f"A run from block {layer} on, without an edit, has other logits than the whole "
                f"pass (they differ by {difference:.3g} standard deviations). {remedy}",
                spoils="rerun",
            )
            return


def _check_batch(model: Any, report: Report) -> None:
    image = model.family.probe_image()
    together = model.prepare([PROMPT, LONGER], [image, image])
    alone = model.prepare(PROMPT, image)
    n = alone.input_ids.shape[1]
    logits = model(alone)[0]
    row = model(together)[0][together.layout.mask("all")[0].to(logits.device)]
    difference = float("inf")
    if len(row) == n:
        difference = float((row - logits).abs().max() / logits.float().std())
    # Other shapes are other sums, block after block: true faults are a hundred times as large.
    if not difference <= 10 * TOLERANCE.get(logits.dtype, 0.2):
        report.add(
            "error",
            "A row in a padded batch has other logits than the row alone (they differ by "
            f"{difference:.3g} standard deviations). Run one row at a time.",
            spoils="batch",
        )


def _check_cache(model: Any, report: Report, inputs: Inputs) -> None:
    """Does generation read of its cache what a pass over the same tokens computes?

    Logits are compared, not tokens: of two that are as likely, rounding chooses either.
    """
    if _text_sees_on(model, inputs):
        return  # a prompt is one thing with what was written behind it, and another without
    n = inputs.input_ids.shape[1]
    # No whole pass takes a placeholder that was written for a word.
    never = [i for i in (model.family.image_token_id, video_token(model.family)) if i is not None]
    try:
        written = model.generate(
            inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            stop_at_eos=False,
            output_logits=True,
            verbose=False,
            suppress_tokens=never,
        )
    except NotImplementedError:  # TransformerLens's word: this architecture does not generate so
        return
    with model.bound(inputs):
        whole = model(written.sequences[:, :-1])[0, n - 1 :].float()
    cached = torch.cat(written.logits).float().to(whole.device)
    difference = float((cached - whole).abs().max() / whole.std())
    if not difference <= TOLERANCE.get(written.logits[0].dtype, 0.2):
        report.add(
            "error",
            "With its KV cache the model computes other logits than in a pass over the same tokens "
            f"(they differ by {difference:.3g} standard deviations), so it would write other "
            "tokens. Generate with use_past_kv_cache=False.",
            spoils="cache",
        )


def _text_sees_on(model: Any, inputs: Inputs) -> bool:
    """Whether text of the prompt sees text behind it, as the prefix of a prefix model does."""
    with read_masks(model) as masks:
        model(inputs)
    text = inputs.layout.mask("text")
    later = (text[:, :, None] & text[:, None, :]).triu(1)
    return any(bool((mask.any(1) & later.to(mask.device)).any()) for mask in masks.values())


def _check_masks(model: Any, report: Report, inputs: Inputs) -> None:
    """Hide the image from the text in every block, and change the image."""
    attentions = [getattr(block, "attn", None) for block in model.blocks]
    if None in attentions:
        return  # what mixes positions in another way lets the image pass
    text, visual = (inputs.layout.mask(group) for group in ("text", "visual"))
    edges = (text[:, :, None] & visual[:, None, :])[:, None]
    pixels = inputs["pixel_values"]
    logits = []
    try:
        with ExitStack() as stack:
            for attention in attentions:
                stack.enter_context(hide_keys(attention, lambda states: edges))
            for shown in (pixels, pixels.flip(-1)):
                logits.append(model({**inputs, "pixel_values": shown})[text.to(model.cfg.device)])
    except InputError as error:
        report.add("error", f"Keys cannot be hidden from queries: {error}", spoils="mask")
        return
    difference = float((logits[0] - logits[1]).abs().max() / logits[0].float().std())
    if not difference <= 10 * TOLERANCE.get(logits[0].dtype, 0.2):
        report.add(
            "error",
            "Text that no longer sees the image at any block still depends on it (its logits "
            f"differ by {difference:.3g} standard deviations): something else than attention, or a "
            "mask that is not reached, lets it pass.",
            spoils="mask",
        )
