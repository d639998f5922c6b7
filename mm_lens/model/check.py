"""The check at load: do the numbers of the bridge mean what they say?

Guaranteed after a clean report, for the prompt and the synthetic image of the check:

1. the bridge's logits equal the native model's (same attention implementation);
2. every hook point fires, but for those known to be dead: asking for one of these raises;
3. an edit at each kind of hook point, per modality, changes the output; so does one of the
   attention pattern, where there is one;
4. at every block, what is written adds up: `resid_pre + attn_out = resid_mid`,
   `resid_mid + mlp_out = resid_post`, and that is the next block's `resid_pre`;
5. a run from a block on, without an edit, has the logits of the whole pass;
6. a row in a padded batch has the logits of the row alone;
7. a token read with the KV cache has the logits of the whole pass, so that `generate` writes the
   same tokens with the cache and without.

Where the first fails nothing holds, and loading is refused. Where one of the others fails, the
tools that need it refuse (`Report.require`), and the rest works.

Cost: about thirty-five forward passes of a short prompt with one small image.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens._notebook import make_table
from mm_lens.checkpoints.building import say
from mm_lens.errors import MMLensError, MMLensWarning, lacks_memory
from mm_lens.model.families import Family
from mm_lens.model.hooks import PARENTS, guard, names
from mm_lens.model.inputs import Inputs, prepare
from mm_lens.model.rerun import TOLERANCE, Rerun

PROMPT = "What is this?"

Need: TypeAlias = Literal["residual", "pattern", "rerun", "batch", "cache"]
"""What a tool may need of a model: points 4, 3, 5, 6 and 7 of the module's text."""

LONGER = "What is this, and what is it not?"

NEW_TOKENS = 4
"""Written by the check of the KV cache: the first comes of the prompt, the others of the cache."""


@dataclass(frozen=True)
class Finding:
    """Something the user of a model should know. `level` "error" means: numbers are wrong.

    `spoils` says of which tools; None: of all.
    """

    level: Literal["error", "warning", "note"]
    message: str
    spoils: Need | None = None


@dataclass(repr=False)
class Report:
    """What the check found. Also `model.report`."""

    findings: list[Finding] = field(default_factory=list)
    max_logit_difference: float = float("nan")
    """Largest absolute difference to the native model's logits, over all real positions."""

    dead_hooks: tuple[str, ...] = ()
    """Hook points that did not fire."""

    def add(
        self,
        level: Literal["error", "warning", "note"],
        message: str,
        spoils: Need | None = None,
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, message, spoils))

    def require(self, tool: str, *needs: Need) -> None:
        """Refuse a tool whose numbers would be wrong on this model.

        Args:
            tool: names it in the message.
            needs: what it takes for granted.

        Raises:
            MMLensError: the check at load found that this does not hold.
        """
        for finding in self.findings:
            if finding.level == "error" and finding.spoils in needs:
                raise MMLensError(
                    f"{tool}: refused, since its numbers would be wrong on this model. "
                    f"{finding.message} Load with check=False to look at them all the same."
                )

    def __repr__(self) -> str:
        lines = [f"  {finding.level}: {finding.message}" for finding in self.findings]
        return "\n".join([f"Report({self._verdict()}", *lines]) + ")"

    def _repr_html_(self) -> str:
        """The verdict, and every finding."""
        rows = [(finding.level, finding.message) for finding in self.findings]
        return make_table(["level", "finding"], rows, self._verdict())

    def _verdict(self) -> str:
        """In one line."""
        if math.isnan(self.max_logit_difference):
            return "not checked"
        count = Counter(finding.level for finding in self.findings)
        return (
            f"logits within {self.max_logit_difference:.2g} of the native model's; "
            f"{count['error']} errors, {count['warning']} warnings; "
            f"{len(self.dead_hooks)} hook points never fire (.dead_hooks)"
        )

    def announce(self) -> None:
        """Print warnings once, and what some tools will refuse; raise where nothing holds.

        Raises:
            MMLensError: the bridge computes something else than the native model.
        """
        errors = [f.message for f in self.findings if f.level == "error" and f.spoils is None]
        if errors:
            raise MMLensError(
                " ".join(errors)
                + " Nothing measured on this bridge would hold. If nothing of it is "
                "your doing, please report it; check=False loads it all the same."
            )
        for finding in self.findings:
            if finding.level != "note":
                warnings.warn(finding.message, MMLensWarning, stacklevel=3)


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
    layer = model.cfg.n_layers // 2
    for hook in PARENTS:
        for group in ("visual", "text"):
            name = f"blocks.{layer}.{group}.hook_{hook}"
            if name not in model._hook_registry or name in report.dead_hooks:
                continue

            def mirror(rows: Tensor, hook: Any) -> Tensor:
                return rows.flip(-1)

            edited = model.run_with_hooks(inputs, fwd_hooks=[(name, mirror)])
            if torch.equal(edited, logits):
                report.add("warning", f"An edit at {name} does not change the output.")


def _check_pattern(model: Any, report: Report, inputs: Inputs, logits: Tensor) -> None:
    """Where attention is left to the native model, its pattern is a report: edits do nothing."""
    layer = model.cfg.n_layers // 2
    for hook in ("hook_attn_scores", "hook_pattern"):
        name = f"blocks.{layer}.attn.{hook}"
        if name not in model._hook_registry or model._remedy_if_dead(name):
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
    layer = model.cfg.n_layers // 2
    remedy = "Effects measured by running blocks again would be wrong."
    try:
        rerun = Rerun(model, inputs, [layer])
        difference = rerun.difference(layer)
    except Exception as error:  # whatever the model's own code says to embeddings
        if lacks_memory(error):
            raise
        report.add("error", f"A run from block {layer} on fails: {error}. {remedy}", spoils="rerun")
        return
    if not difference <= TOLERANCE.get(rerun.logits.dtype, 0.2):
        report.add(
            "error",
            f"A run from block {layer} on, without an edit, has other logits than the whole pass "
            f"(they differ by {difference:.3g} standard deviations). {remedy}",
            spoils="rerun",
        )


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
    if not difference <= TOLERANCE.get(logits.dtype, 0.2):
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
    n = inputs.input_ids.shape[1]
    try:
        written = model.generate(
            inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            stop_at_eos=False,
            output_logits=True,
            verbose=False,
        )
    except NotImplementedError:  # TransformerLens's word: this architecture does not generate so
        return
    new = written.sequences[0, n:-1]  # nothing reads the last one
    # A model may write its image placeholder, which no whole pass takes for a word.
    words = int((new != model.family.image_token_id).long().cumprod(0).sum())
    with model.bound(inputs):
        whole = model(written.sequences[:, : n + words])[0, n - 1 :].float()
    cached = torch.cat(written.logits[: words + 1]).float().to(whole.device)
    difference = float((cached - whole).abs().max() / whole.std())
    if not difference <= TOLERANCE.get(written.logits[0].dtype, 0.2):
        report.add(
            "error",
            "With its KV cache the model computes other logits than in a pass over the same tokens "
            f"(they differ by {difference:.3g} standard deviations), so it would write other "
            "tokens. Generate with use_past_kv_cache=False.",
            spoils="cache",
        )
