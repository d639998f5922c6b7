"""Hook points where an edit cannot reach the output: such edits raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from mm_lens.errors import HookError
from mm_lens.model.parts.quiet import QuietHookPoint

Direction = Literal["fwd", "bwd"]


class GuardedHookPoint(QuietHookPoint):
    """A hook point where (some) edits cannot reach the output: reading works, such edits raise."""

    _inert: tuple[Callable[[Tensor], Tensor | None], str]

    def add_hook(self, hook: Callable[..., Any], dir: Direction = "fwd", **kwargs: Any) -> Any:  # type: ignore[override]
        """As `HookPoint.add_hook`; a forward hook that edits where it has no effect raises."""
        if dir != "fwd":
            return super().add_hook(hook, dir=dir, **kwargs)
        point = self

        def guarded(tensor: Tensor, hook: HookPoint) -> Any:
            if type(point) is not GuardedHookPoint:  # uninstalled
                return user(tensor, hook=hook)
            before = tensor.detach().clone()
            result = user(tensor, hook=hook)
            after = tensor if result is None else result
            if isinstance(after, Tensor) and after.shape == before.shape:
                after = after.detach()
                changed = (after != before) & ~(after.isnan() & before.isnan())
                if bool(changed.any()):
                    inert, remedy = point._inert
                    where = inert(before)
                    if bool((changed if where is None else changed[where]).any()):
                        raise HookError(
                            f"An edit at {point.name} does not reach the output. {remedy}"
                        )
            return result

        user = hook
        return super().add_hook(guarded, dir=dir, **kwargs)


def _everywhere(tensor: Tensor) -> None:
    return None


def guard(
    point: HookPoint, remedy: str, where: Callable[[Tensor], Tensor | None] = _everywhere
) -> None:
    """Make edits at `point` raise where the mask of `where` [batch, pos] is set (None: all)."""
    if type(point) not in (HookPoint, QuietHookPoint):
        return
    point.__class__ = GuardedHookPoint
    point._inert = (where, remedy)  # type: ignore[assignment]
