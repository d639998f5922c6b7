"""Hook points per modality: views of TransformerLens hook points that see one group of tokens.

A view places its hook on the *parent* hook point: gather the rows of its group, call the user's
hook, scatter edited rows back. So a modality hook and a full-stream hook on the same point see each
other's edits, in the order in which they were attached; and a view without hooks runs no code.

Activations are padded to `[batch, n_max, ...]` with zeros, `n_max` being the largest number of
tokens of the group in a row. The padding is not data: `layout.valid(group)` says which rows are
real. What a hook writes into padding is dropped.

A hook of a group that has no token in a decoding step is not called. Outside of decoding it raises:
the image was forgotten, unless it was said that there is none (`ForwardContext.select`).

Backward hooks are tensor hooks made during the forward pass: each gradient meets the rows of its
own forward pass, whatever ran in between.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint, LensHandle, _AliasedHookPoint

from mm_lens.arguments import require_whole, suggest
from mm_lens.errors import HookError, InputError, MMLensWarning
from mm_lens.model.forward import ForwardContext
from mm_lens.model.parts.guards import GuardedHookPoint
from mm_lens.model.parts.snapshots import Snapshot
from mm_lens.model.running.frames import Frame, Selection

Direction = Literal["fwd", "bwd"]
NamedHook: TypeAlias = "tuple[str, Callable[..., Any]]"
"""Name of a hook point, and what runs there: `function(tensor, hook=point)`."""

PARENTS: Mapping[str, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "pre": "mlp.hook_pre",
    "post": "mlp.hook_post",
}
"""Token-indexed hook points of a block: short name and where TransformerLens keeps it."""

GROUPS = ("visual", "text")
"""Groups that get hook points at load."""

_ALIAS = re.compile(r"blocks\.(\d+)\.hook_([a-z]+)_(\w+)")


def names(
    hook: str | Sequence[str],
    modality: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> Callable[[str], bool]:
    """A `names_filter` for hook points: `names("resid_post", modality="visual")`.

    ```python
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post", "visual"))
    ```

    Args:
        hook: short name(s) as in `hooks.PARENTS`: "resid_post", "attn_out", "q", …
        modality: "visual", "text", or both; None for the full stream.
        layers: blocks to take; None takes all.

    Raises:
        InputError: no hook point of that name, modality or layer can exist.
    """
    hooks = [hook] if isinstance(hook, str) else list(hook or ())
    if not hooks or (layers is not None and not isinstance(layers, Iterable)):
        raise InputError(
            "names takes hook points and a list of layers, as "
            f'names(["resid_post", "z"], layers=[0, 5]), not {hook!r} and {layers!r}.'
        )
    if unknown := [h for h in hooks if h not in PARENTS]:
        raise InputError(
            f"No hook point is called {unknown[0]!r}. Use: {', '.join(PARENTS)}."
            f"{suggest(unknown[0], PARENTS)}"
        )
    if modality is None:
        tails = {PARENTS[h] for h in hooks}
    else:
        groups = [modality] if isinstance(modality, str) else list(modality)
        if unknown := [group for group in groups if group not in GROUPS]:
            raise InputError(
                f"There are no hook points for {unknown[0]!r}, only for {', '.join(GROUPS)}. Leave "
                "modality out for all tokens; select others from the full stream with "
                "layout.mask(...)."
            )
        tails = {f"{group}.hook_{h}" for group in groups for h in hooks}
    wanted = None if layers is None else {require_whole("A layer", layer) for layer in layers}
    if wanted is not None and not wanted:
        raise InputError("layers= names no layer. Leave it out to take all.")
    if wanted and min(wanted) < 0:
        raise InputError("Layers are counted from 0 here: the filter does not know the last one.")
    return HookNames(frozenset(tails), None if wanted is None else frozenset(wanted))


@dataclass(frozen=True)
class HookNames:
    """What `names` returns: a `names_filter` that can also be spelled out."""

    tails: frozenset[str]  # after blocks.{layer}.
    layers: frozenset[int] | None

    def __call__(self, name: str) -> bool:
        """Whether the filter takes the hook point of this name."""
        root, _, rest = name.partition(".")
        layer, _, tail = rest.partition(".")
        taken = root == "blocks" and tail in self.tails
        return taken and (self.layers is None or int(layer) in self.layers)

    def spell(self, n_layers: int) -> list[str]:
        """Every name that the filter takes in a model of `n_layers` blocks."""
        layers = range(n_layers) if self.layers is None else sorted(self.layers)
        return [f"blocks.{layer}.{tail}" for layer in layers for tail in sorted(self.tails)]


_MEANT = {
    **dict.fromkeys(("image", "images", "img", "vision", "picture", "pictures"), "visual"),
    **dict.fromkeys(("language", "words", "prompt", "txt"), "text"),
}
"""What modalities are called elsewhere."""


def respell(name: str) -> str:
    """A name of a hook point with modalities called as here: `image` is `visual`."""
    return re.sub(
        r"(?<=\.)[a-z]+(?=\.)|(?<=\.hook_)[a-z]+(?=_)", lambda n: _MEANT.get(n[0], n[0]), name
    )


def canonical(name: str) -> str:
    """Resolve the spelling `blocks.3.hook_visual_q` of `blocks.3.visual.hook_q`."""
    if (match := _ALIAS.fullmatch(name)) and match[2] in GROUPS and match[3] in PARENTS:
        return f"blocks.{match[1]}.{match[2]}.hook_{match[3]}"
    return name


def narrow(
    points: Mapping[str, HookPoint], remedy_if_dead: Callable[[str], str | None]
) -> set[str]:
    """Names of hook points that a filter matches, without a position twice, nor any that is dead.

    Code written for TransformerLens says `name.endswith("hook_resid_post")` and means one hook
    point for each block: a view is taken only if its full stream is not.

    Args:
        points: what the filter matches, by name.
        remedy_if_dead: what to do instead, for the name of a point that never fires.
    """
    whole = {id(p) for p in points.values() if not isinstance(p, ModalityHookPoint)}
    dead = {name for name in points if remedy_if_dead(name)}
    if dead:
        first = min(dead)
        warnings.warn(
            f"{len(dead)} hook points that the filter matches never fire and are left out, "
            f"{first} among them. {remedy_if_dead(first)}",
            MMLensWarning,
            stacklevel=5,
        )
    twice = {
        name
        for name, point in points.items()
        if isinstance(point, ModalityHookPoint) and id(point.parent) in whole
    }
    return points.keys() - dead - twice


@dataclass
class ViewHandle(LensHandle):
    """A hook that a view placed on its parent. Both list it."""

    view: ModalityHookPoint | None = None


class _Removable:
    """Removes a hook from torch and from the parent's list, whichever side is asked."""

    def __init__(self, inner: RemovableHandle, parent: HookPoint) -> None:
        self.inner, self.parent = inner, parent

    def remove(self) -> None:
        self.inner.remove()
        # New lists: TransformerLens may be iterating over the old ones.
        self.parent.fwd_hooks = [h for h in self.parent.fwd_hooks if h.hook is not cast(Any, self)]
        self.parent.bwd_hooks = [h for h in self.parent.bwd_hooks if h.hook is not cast(Any, self)]


class ModalityHookPoint(HookPoint):
    """The tokens of one group at one hook point. Attaching places a hook on the parent."""

    def __init__(self, parent: HookPoint, group: str, context: ForwardContext) -> None:
        super().__init__()
        self._parent = (parent,)  # in a tuple, or torch would adopt the parent as a child
        self._context = context
        self.group = group

    @property
    def parent(self) -> HookPoint:
        """The full-stream hook point."""
        return self._parent[0]

    def _mine(self, handles: Iterable[LensHandle]) -> list[LensHandle]:
        return [h for h in handles if isinstance(h, ViewHandle) and h.view is self]

    # The parent's lists are the only record, so that neither side can be out of date.
    @property
    def fwd_hooks(self) -> list[LensHandle]:
        """Forward hooks attached through this view."""
        return self._mine(self.parent.fwd_hooks)

    @fwd_hooks.setter
    def fwd_hooks(self, handles: list[LensHandle]) -> None:
        pass  # TransformerLens assigns what is left after removal: the parent knows already

    @property
    def bwd_hooks(self) -> list[LensHandle]:
        """Backward hooks attached through this view."""
        return self._mine(self.parent.bwd_hooks)

    @bwd_hooks.setter
    def bwd_hooks(self, handles: list[LensHandle]) -> None:
        pass

    def add_hook(
        self,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> LensHandle:
        """Attach `hook(rows, hook=view)`, rows being `[batch, n_max, ...]`; see `HookPoint`.

        Raises:
            ValueError: `dir` is neither "fwd" nor "bwd".
        """
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"Invalid direction {dir}")
        aliases = [_AliasedHookPoint(name, self) for name in alias_names or ()]
        points: list[Any] = aliases or [self]
        run = self._forward_hook if dir == "fwd" else self._backward_hook

        def on_parent(tensor: Tensor, hook: HookPoint) -> Tensor | None:
            selection = self._context.select(self.group, self.name or "The hook point")
            return None if selection is None else run(tensor, selection, user, points)

        user = hook
        # What a hook outlives is read from the handle below, which takes the place of this one.
        inner = self.parent.add_hook(on_parent, prepend=prepend)
        handle = ViewHandle(
            _Removable(inner.hook, self.parent),  # type: ignore[arg-type]
            is_permanent,
            level,
            user_hook=hook,
            view=self,
        )
        listed = [h for h in self.parent.fwd_hooks if h is not inner]
        if dir == "bwd":
            self.parent.fwd_hooks = listed
            listed = list(self.parent.bwd_hooks)
        listed.insert(0 if prepend else len(listed), handle)
        setattr(self.parent, f"{dir}_hooks", listed)
        return handle

    def _forward_hook(
        self, tensor: Tensor, selection: Selection, user: Callable[..., Any], points: list[Any]
    ) -> Tensor | None:
        rows = selection.gather(tensor)
        edited = self._call(user, rows, points)
        return None if edited is None else selection.scatter(tensor, edited)

    def _backward_hook(
        self, tensor: Tensor, selection: Selection, user: Callable[..., Any], points: list[Any]
    ) -> Tensor | None:
        if not tensor.requires_grad:
            return None

        def on_gradient(gradient: Tensor) -> Tensor | None:
            edited = self._call(user, selection.gather(gradient), points)
            return None if edited is None else selection.scatter(gradient, edited)

        # A view of its own: the gradient at this point, and the node is on the path to the output
        # also where the parent reshapes (q, k, v, z).
        tensor = tensor.view_as(tensor)
        tensor.register_hook(on_gradient)
        return tensor

    def _call(self, user: Callable[..., Any], rows: Tensor, points: list[Any]) -> Tensor | None:
        """What the hook made of the rows, None if it left them alone. In-place edits count."""
        before = Snapshot(rows)
        edited = rows
        for point in points:
            result = user(edited, hook=point)
            if isinstance(result, tuple) and len(result) == 1:
                result = result[0]  # TransformerLens lets backward hooks return (grad,)
            if result is None:
                continue
            if not isinstance(result, Tensor) or result.shape != rows.shape:
                got = tuple(result.shape) if isinstance(result, Tensor) else type(result)
                raise HookError(
                    f"The hook at {self.name} returned {got}; it must return None or a tensor "
                    f"of shape {tuple(rows.shape)} [batch, n_{self.group}, ...]."
                )
            edited = result
        return None if edited is rows and not before.changed() else edited

    def __getstate__(self) -> dict[str, Any]:
        if self.fwd_hooks or self.bwd_hooks:
            raise HookError(
                f"{self.name} has hooks, which would still work on the original in a copy. "
                "Take them off first: model.reset_hooks(including_permanent=True)."
            )
        return self.__dict__


def find_frame(hook: Any) -> Frame:
    """The forward pass that a hook of the full stream fires in, told by its hook point.

    Raises:
        HookError: the hook point is of no model of `mm_lens.load`, or the model is not running.
    """
    point = getattr(hook, "_target", hook)  # behind another spelling of its name
    context: ForwardContext | None = point.__dict__.get("_forward_context")
    if context is None:
        raise HookError(
            f"What the positions at {hook.name} are is unknown: run the hook in a model of "
            "mm_lens.load, at a hook point of its blocks."
        )
    return context.frame


def install_views(bridge: Any, context: ForwardContext, groups: Iterable[str]) -> None:
    """Register a view for every group, block and token-indexed hook point of `bridge`."""
    known = bridge.hook_dict
    for i, block in enumerate(bridge.blocks):
        for short, path in PARENTS.items():
            parent = known.get(f"blocks.{i}.{path}")
            if parent is None:
                continue  # a block of another kind (no attention, or no gate)
            parent.__dict__["_forward_context"] = context
            for group in groups:
                view = ModalityHookPoint(parent, group, context)
                name = f"{group}.hook_{short}"
                view.name = f"blocks.{i}.{name}"
                # Registries, not attributes: the scan that compatibility mode repeats reads the
                # block's registry, and an attribute would put the view into the module tree.
                block._hook_registry[name] = bridge._hook_registry[view.name] = view


def uninstall_views(bridge: Any) -> None:
    """Take every view off again, with the hooks attached through it."""
    for registry in (bridge._hook_registry, *(block._hook_registry for block in bridge.blocks)):
        for name in [n for n, point in registry.items() if isinstance(point, ModalityHookPoint)]:
            registry.pop(name).remove_hooks("both", including_permanent=True)
    for point in bridge._hook_registry.values():
        point.__dict__.pop("_forward_context", None)
        if type(point) is GuardedHookPoint:
            point.__class__ = HookPoint  # type: ignore[assignment]
