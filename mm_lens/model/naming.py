"""Hook points by name, as TransformerLens takes them: further spellings, filters, dead ones.

What is put on a `TransformerBridge` for it; `mm_lens.model.hooks` has the names themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge, bridge_core
from transformer_lens.model_bridge.generalized_components.base import alias_generation

from mm_lens.arguments import check_hooks, require_filter, suggest
from mm_lens.errors import HookError, MMLensError, UnknownHookError
from mm_lens.model.forward import ForwardContext
from mm_lens.model.hooks import PARENTS, HookNames, canonical, narrow, respell

Names: TypeAlias = "str | list[str] | Callable[[str], bool] | None"


@contextmanager
def suggesting(names: Any, known: Iterable[str]) -> Iterator[None]:
    """Have TransformerLens's error about a name that there is not say which is meant.

    Args:
        names: what was asked for: a name or several; others raise nothing of the kind.
        known: names of all hook points.

    Raises:
        UnknownHookError: in place of TransformerLens's `KeyError`.
    """
    try:
        yield
    except KeyError as error:
        told = str(error.args[0]) if error.args else ""
        ours = isinstance(error, MMLensError)
        if ours or not ("does not exist" in told or "matched no hook" in told):
            raise
        first = names if isinstance(names, str) else next(iter(names), "")
        respelled = canonical(respell(str(first)))
        meant = respelled if respelled in {*known} else first
        remedy = suggest(meant, known) or " model.hook_dict holds the names."
        if first in PARENTS:
            remedy = f' mm_lens.names("{first}") names it in every block.'
        raise UnknownHookError(f"No hook point is called {first!r}. {told}{remedy}") from error


class _HookDict(dict[str, HookPoint]):
    """Hook points by name, with the map of aliases that TransformerLens makes of them."""

    aliases: Mapping[str, str]


_map_aliases = bridge_core.build_alias_to_canonical_map


def _recall_aliases(hook_dict: Any, prefix: str = "") -> Any:
    """As in TransformerLens, which walks over thousands of names in each call."""
    known = None if prefix else getattr(hook_dict, "aliases", None)
    return _map_aliases(hook_dict, prefix) if known is None else known


bridge_core.build_alias_to_canonical_map = _recall_aliases


class NamedHooks(TransformerBridge):
    """A bridge that resolves every spelling of a hook point, and refuses those that never fire."""

    context: ForwardContext

    _dead: dict[re.Pattern[str], str]
    """What to do instead, by the names of hook points that never fire."""

    _hook_dict: tuple[dict[str, HookPoint], object, _HookDict] | None = None

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """As in TransformerLens, put together once and not in each call."""
        registered, aliases = self._hook_registry, alias_generation()
        if self._hook_dict is None or self._hook_dict[:2] != (registered, aliases):
            known = _HookDict(super().hook_dict)
            known.aliases = _map_aliases(known)
            self._hook_dict = dict(registered), aliases, known
        found = _HookDict(self._hook_dict[2])  # of the caller's own
        found.aliases = self._hook_dict[2].aliases
        return found

    def _remedy_if_dead(self, name: str) -> str | None:
        point = self._hook_registry.get(name)
        spellings = {name, name if point is None else point.name or name}
        for pattern, remedy in self._dead.items():
            if any(pattern.fullmatch(spelling) for spelling in spellings):
                return remedy
        return None

    def _declare_dead(self, names: Sequence[str], remedy: str) -> None:
        self._dead |= {re.compile(re.escape(name)): remedy for name in names}

    def _check_hook_fireable(self, *names: str) -> None:
        super()._check_hook_fireable(*names)
        for name in names:
            if remedy := self._remedy_if_dead(name):
                raise HookError(f"{name} never fires in this model. {remedy}")

    def _filter(self, names: Names) -> Names:
        """A filter as TransformerLens takes it: no other spellings; functions narrowed."""
        if names is None:
            return None
        if isinstance(names, str):
            return canonical(names)
        if isinstance(names, (list, tuple, set, frozenset)):
            return [canonical(n) for n in names]
        require_filter("names_filter", names)
        try:
            return self._narrow(names).__contains__
        except HookError as error:
            self.context.tell(f"{error} Nothing is cached.")
            return frozenset[str]().__contains__

    def _narrow(self, matches: Callable[[str], bool]) -> set[str]:
        known = self.hook_dict
        # Asking a filter for each of a thousand names takes longer than a block.
        taken = matches.spell(self.cfg.n_layers) if isinstance(matches, HookNames) else known
        points = {name: known[name] for name in taken if name in known and matches(name)}
        if not (found := narrow(points, self._remedy_if_dead)):
            raise HookError("The filter matches no hook point of this model (model.hook_dict).")
        return found

    def _resolve_hook_point(self, name: str, aliases: Any, hook_dict: Any) -> Any:
        with suggesting(name, hook_dict):
            return super()._resolve_hook_point(canonical(name), aliases, hook_dict)

    def get_hook_point(self, hook_name: str) -> Any:
        """As in TransformerLens, with the spellings `blocks.3.hook_visual_resid_post`."""
        return super().get_hook_point(canonical(hook_name))

    def add_hook(self, name: Any, *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens, with the spellings `blocks.3.hook_visual_resid_post`."""
        check_hooks([(name, args[0] if args else kwargs.get("hook_fn"))])
        name = canonical(name) if isinstance(name, str) else self._narrow(name).__contains__
        super().add_hook(name, *args, **kwargs)
