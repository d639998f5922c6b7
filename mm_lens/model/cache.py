"""The cache that knows what the cached positions are."""

from __future__ import annotations

import difflib
import html
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.slice import Slice

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.errors import HookError, InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.metrics.tokens import Tokens, subsample
from mm_lens.model.binding import READ, Binding, identify_documents, take_frame
from mm_lens.model.hooks import GROUPS, PARENTS, ModalityHookPoint, canonical, respell
from mm_lens.model.parts.copying import Copied
from mm_lens.model.report import Need, Report
from mm_lens.model.running.frames import Frame

_VIEW = re.compile(rf"blocks\.(\d+)\.({'|'.join(GROUPS)})\.hook_(\w+?)(_grad)?")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_SHOWN = 8


class LayoutCache(Copied, ActivationCache):
    """An `ActivationCache` that knows what the cached rows are.

    `cache["resid_post", 5, "visual"]` is `[batch, n_visual_max, d_model]`, zero padded, also where
    only the full stream was cached; `cache.layout.valid("visual")` says which rows are real.
    """

    frame: Frame
    """The forward pass it comes from."""

    sliced: bool
    """Whether the cached positions are only some of the pass (`pos_slice`)."""

    @staticmethod
    def of(cache: ActivationCache, frame: Frame | None, pos_slice: Any = None) -> LayoutCache:
        """Turn a cache of TransformerLens into this class, in place."""
        cache.__class__ = LayoutCache
        assert isinstance(cache, LayoutCache)
        assert frame is not None, "the pass that filled the cache"
        cache.frame, cache.sliced = frame, Slice.unwrap(pos_slice).mode != "identity"
        return cache

    @property
    def layout(self) -> TokenLayout:
        """What every position of the cached forward pass is."""
        return self.frame.layout

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Keyword arguments of the forward pass."""
        return self.frame.inputs

    def __getitem__(self, key: Any) -> Tensor:
        """As in TransformerLens; the third place of a key may be a modality for every hook.

        Raises:
            KeyError: nothing of this name was cached; the message says what was, and if nothing
                ever can be.
            InputError: `model.bound(…)` holds inputs of another layout; or the rows of a modality
                are asked for where only some positions were cached (`pos_slice`).
        """
        tensor = self.read(key)
        context = cast(Any, self.model).__dict__.get("context")
        binding: Binding | None = None if context is None else context.bound
        if binding is not None:
            binding.check_read(self.frame)
        READ[tensor] = self.frame  # for tools that are given the tensor alone
        return tensor

    def read(self, key: Any) -> Tensor:
        """As `cache[key]`, whatever is bound: for tools that match positions themselves.

        Raises:
            KeyError: as there.
            InputError: as there.
        """
        if key in self.cache_dict:
            return self.cache_dict[key]
        name = canonical(self._name(key))
        if name in self.cache_dict:
            return self.cache_dict[name]
        if (rows := self._gather(name)) is not None:
            return rows
        raise KeyError(self._missing(name))

    def tokens(self, *key: Any) -> Tokens:
        """The real tokens behind `cache[key]`, for a metric's one-call form.

        ```python
        METRICS["dimension_mle"].compute(cache.tokens("mlp_out", 3, "visual"))
        ```

        All heads of a token together. Rows of one picture are one sample, whose tokens they share.

        Raises:
            KeyError: as there.
            InputError: the hook has no vector per token.
        """
        layout = self.layout
        group = next((part for part in key[2:] if part in GROUPS), "all")
        mask, x = layout.mask(group), self.read(key if len(key) > 1 else key[0])
        at = layout.valid(group) if group in GROUPS else mask
        batched = x if x.shape[0] == layout.shape[0] and x.ndim > 2 else x[None]
        if batched.shape[:2] != at.shape or not x.is_floating_point():
            raise InputError(
                f"{key} has shape {tuple(x.shape)}, no vector for each of the {group} tokens "
                f"{tuple(at.shape)} [batch, pos]. Cache it without pos_slice."
            )
        rows, _ = mask.nonzero(as_tuple=True)
        position = (layout.mask("all").cumsum(1) - 1)[mask]
        ids = torch.tensor([digest(f"row {row}") for row in range(len(mask))])[rows.cpu()]
        sample = torch.tensor(identify_documents(self.frame))[rows.cpu()]
        states = rearrange(batched[at.to(x.device)].detach(), "n ... -> n (...)")
        position = position.cpu()
        token_id, keys = self.inputs["input_ids"][mask].cpu().long(), sampling_key(ids, position)
        of = (sample, position, token_id, keys)
        return subsample(Tokens(states, *(column.to(x.device) for column in of)), len(states))

    def _name(self, key: Any) -> str:
        if isinstance(key, str):
            return str(get_act_name(key))
        if not isinstance(key, tuple) or not key or not isinstance(key[0], str):
            raise KeyError(
                f"{key!r} is no key of a cache: a name, or (hook, layer) and perhaps a modality, "
                'as cache["resid_post", 3, "visual"].'
            )
        hook, layer, *rest = (*key, None) if len(key) == 1 else key
        if layer is not None and layer < 0:
            layer += self.model.cfg.n_layers
        if rest and rest[0] in GROUPS:
            # TransformerLens would overrule the modality for q, k, v, z, pre and post, and answer
            # with the full stream.
            return f"blocks.{layer}.{rest[0]}.hook_{hook}"
        return str(get_act_name(hook, layer, *rest))

    def _gather(self, name: str) -> Tensor | None:
        """Rows of a view out of its full stream; None if that was not cached either."""
        if not (match := _VIEW.fullmatch(name)) or match[3] not in PARENTS:
            return None
        layer, group, hook, gradient = match.groups(default="")
        whole = self._whole(f"blocks.{layer}.{PARENTS[hook]}", name.removesuffix("_grad"), gradient)
        if whole is None:
            return None
        if self.sliced:
            raise InputError(
                f"Which rows of {name} are {group} is unknown: only some positions were cached "
                "(pos_slice). Cache all of them, and slice the rows afterwards."
            )
        if (selection := self.frame.selection(group)) is None:
            raise KeyError(f"The cached forward pass holds no {group} token, hence no {name}.")
        # `remove_batch_dim` took the first axis away.
        return selection.gather(whole) if self.has_batch_dim else selection.gather(whole[None])[0]

    def _whole(self, parent: str, view: str, suffix: str) -> Tensor | None:
        """What was cached of the full stream, under whichever of its names."""
        if parent + suffix in self.cache_dict:
            return self.cache_dict[parent + suffix]
        point = self._points().get(view)
        if not isinstance(point, ModalityHookPoint):
            return None
        names = (name for name, other in self._points().items() if other is point.parent)
        found = (self.cache_dict.get(name + suffix) for name in names)
        return next((tensor for tensor in found if tensor is not None), None)

    def _points(self) -> Mapping[str, Any]:
        points: Mapping[str, Any] = cast(Any, self.model).hook_dict
        return points

    def _missing(self, name: str) -> str:
        remedy = getattr(self.model, "_remedy_if_dead", lambda name: None)(name)
        if remedy:
            return f"{name} never fires in this model. {remedy}"
        text = f"{name} is not in this cache, which holds {len(self)} activations"
        if kinds := self._kinds():
            shown = ", ".join(list(kinds)[:_SHOWN]) + (", …" if len(kinds) > _SHOWN else "")
            text += f" ({shown})"
        near = difflib.get_close_matches(name, list(self.cache_dict), 1)
        if (respelled := canonical(respell(name))) != name and respelled in self._points():
            near = [respelled]
        return f"{text}. " + (f"Did you mean {near[0]}?" if near else "Cache it: see names_filter.")

    def _kinds(self) -> dict[str, str]:
        """What is cached, blocks taken together: name and shape."""
        blocks: dict[str, list[int]] = {}
        shapes: dict[str, Counter[tuple[int, ...]]] = {}
        for name, tensor in self.cache_dict.items():
            kind = _BLOCK.sub("blocks.{}.", name)
            if match := _BLOCK.match(name):
                blocks.setdefault(kind, []).append(int(match[1]))
            shapes.setdefault(kind, Counter())[tuple(getattr(tensor, "shape", ()))] += 1
        return {
            kind.replace("{}", _runs(blocks.get(kind, []))): " or ".join(map(str, found))
            for kind, found in shapes.items()
        }

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> LayoutCache:
        """As in TransformerLens; what the rows are is known as before."""
        if not isinstance(batch_slice, Slice):
            batch_slice = Slice(batch_slice)
        rows = batch_slice.apply(torch.arange(self.frame.shape[0])).reshape(-1).tolist()
        sliced = self.of(
            super().apply_slice_to_batch_dim(batch_slice), take_frame(self.frame, rows)
        )
        sliced.sliced = self.sliced
        return sliced

    # ---- tools that add up what blocks write ----

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; refused where blocks do not add up (`Report.require`)."""
        self._require("decompose_resid", "residual")
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; refused where blocks do not add up (`Report.require`)."""
        self._require("get_full_resid_decomposition", "residual")
        return super().get_full_resid_decomposition(*args, **kwargs)

    def stack_head_results(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; refused where blocks do not add up (`Report.require`)."""
        self._require("stack_head_results", "residual")
        return super().stack_head_results(*args, **kwargs)

    def stack_neuron_results(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; refused where blocks do not add up (`Report.require`)."""
        self._require("stack_neuron_results", "residual")
        return super().stack_neuron_results(*args, **kwargs)

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens; refused where blocks do not add up (`Report.require`)."""
        self._require("logit_attrs", "residual")
        return super().logit_attrs(*args, **kwargs)

    def _require(self, tool: str, *needs: Need) -> None:
        report: Report | None = cast(Any, self.model).__dict__.get("report")
        if report is not None:
            report.require(f"cache.{tool}", *needs)

    # ---- showing ----

    def __repr__(self) -> str:
        width = max(map(len, kinds := self._kinds()), default=0)
        lines = [f"  {name:{width}}  {shape}" for name, shape in kinds.items()]
        left = len(lines) - 2 * _SHOWN
        lines = lines[: 2 * _SHOWN] + ([f"  … {left} more"] if left > 0 else [])
        return "\n".join([f"LayoutCache of {len(self)} activations, {self._about()}", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(shape)}</td></tr>"
            for name, shape in self._kinds().items()
        )
        return (
            f"<details open><summary>LayoutCache of {len(self)} activations, "
            f"{html.escape(self._about())}</summary><table>{rows}</table></details>"
        )

    def _about(self) -> str:
        batch, positions = self.frame.shape
        return f"{batch} row(s) of {positions} positions" + ", some of them" * self.sliced


def choose_cached(model: Any, names: Any, pos_slice: Any, once: bool = False) -> Any:
    """What is cached, as a filter that TransformerLens takes.

    Where nobody says what: every point of the full stream that can fire. A view is part of its full
    stream, and a pass that starts from embeddings may have none.

    Args:
        model: the bridge.
        names: what was asked for; None: nothing in particular.
        pos_slice: the positions that are cached.
        once: under one name each, not under every spelling.

    Raises:
        HookError: rows of hook points per modality would be sliced as if they were positions.
    """
    if names is None:
        return {
            name
            for name, point in model.hook_dict.items()
            if not isinstance(point, ModalityHookPoint)
            and (name == point.name or not once)
            and model._gated_hook_reason(point.name or name) is None
            and model._remedy_if_dead(name) is None
        }.__contains__
    if Slice.unwrap(pos_slice).mode == "identity":
        return names
    matches = model._normalize_names_filter(names)
    points = (point for name, point in model._hook_registry.items() if matches(name))
    if any(isinstance(point, ModalityHookPoint) for point in points):
        raise HookError(
            "pos_slice takes positions of the prompt, but the rows of a hook point per modality "
            "are its tokens only. Cache the full stream with pos_slice, or slice the rows "
            'afterwards: cache["resid_post", 3, "visual"][:, :5].'
        )
    return names


def adjust_entries(
    entries: dict[str, Tensor], asked: Any, stop_at_layer: int | None, n_layers: int
) -> None:
    """Enter the spellings that were asked for, and take out what did not run, in place.

    `hook_embed` is what enters block 0, and compatibility mode copies it to that one's names, also
    where the pass stopped before.
    """
    if stop_at_layer is not None:
        first = stop_at_layer if stop_at_layer >= 0 else stop_at_layer + n_layers
        beyond = tuple(f"blocks.{block}." for block in range(first, n_layers))
        for name in [name for name in entries if name.startswith(beyond)]:
            del entries[name]
    names = [asked] if isinstance(asked, str) else asked
    for name in names if isinstance(names, list) else []:
        if name not in entries and canonical(name) in entries:
            entries[name] = entries[canonical(name)]


def _runs(numbers: list[int]) -> str:
    """Block numbers, runs of them shortened: 0–5,8."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
