"""A coder spliced into a model: activations of a group are replaced by what it makes of them.

With `x` the activation and `f` its features: `decode(edit(f))`, and with `error=True` what the
coder misses is put back, `x - decode(f)`: then a splice without an edit changes nothing, and an
edit of features changes what it says and no more. Without it the splice shows what is lost. A
transcoder reads at one hook point (mostly `ln2.hook_out`) and replaces at another (`mlp_out`).

Works in a forward pass and, for prompt and decoding steps alike, in `generate`: a group goes on in
what is written as `mm_lens.model.running.writing.reach` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mm_lens.dictionaries.coders import Coder, SparseCoder
from mm_lens.errors import HookError, InputError
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import PARENTS, NamedHook, find_frame
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.writing import WRITTEN, reach
from mm_lens.model.streams import resolve_layers

Edit = Callable[[Tensor], Tensor]


def splice_hooks(
    model: VisionLanguageBridge,
    inputs: Inputs,
    coder: Coder,
    group: Any = "visual",
    *,
    layer: int,
    hook: str = "resid_post",
    write: str | None = None,
    error: bool = True,
    edit: Edit | None = None,
) -> list[NamedHook]:
    """Forward hooks that splice a coder in, in passes of `inputs` and in `generate`.

    ```python
    def off(features):
        features[:, 7] = 0
        return features

    with model.hooks(fwd_hooks=splice_hooks(model, inputs, coder, "visual", layer=4, edit=off)):
        model.generate(inputs)
    ```

    Args:
        model: the model.
        inputs: what it is run on.
        coder: what `load_coder` returned, or anything with `encode` and `decode`.
        group: whose activations: a group of the layout, `"last"`, `"written"`, a `Box`, a mask.
        layer: block, negative ones from the end.
        hook: where it reads: a short name as in `hooks.PARENTS`, or what follows `blocks.{layer}.`
            in the name of a hook point.
        write: short name of where it replaces; None: where it reads. For transcoders "mlp_out".
        error: put back what the coder misses.
        edit: from features [n, feature] to features.

    Raises:
        InputError: the group is empty in every row; what is no coder; activations of another width
            when the hook runs.
        HookError: no such hook point.
    """
    check_inputs(model, inputs)
    check_coder(coder)
    (block,) = resolve_layers([layer], model.cfg.n_layers)
    read_name = point_name(model, hook, block)
    target = hook if write is None else write
    if target not in PARENTS:
        raise HookError(f"No hook point is called {target!r}. Use: {', '.join(PARENTS)}.")
    write_name = point_name(model, target, block)
    written = isinstance(group, str) and group == WRITTEN
    if not written and not bool(group_mask(inputs.layout, group).any()):
        raise InputError(f"These inputs hold no position of {group!r} to splice a coder into.")
    held: dict[str, Tensor] = {}

    def read(tensor: Tensor, hook: Any) -> None:
        held["read"] = tensor

    def put(tensor: Tensor, hook: Any) -> Tensor | None:
        source = held.pop("read") if read_name != write_name else tensor
        place = find_frame(hook).place(inputs.layout, "The coder")
        here = place.of(reach(inputs.layout, group, place.total)).to(tensor.device)
        if not bool(here.any()):
            return None
        out = tensor.clone()
        rows = tensor[here]
        made = run_coder(coder, source[here].flatten(1), rows.flatten(1), error, edit)
        out[here] = made.view_as(rows).to(tensor.dtype)
        return out

    return (
        [(write_name, put)] if read_name == write_name else [(read_name, read), (write_name, put)]
    )


def run_coder(
    coder: Coder,
    source: Float[Tensor, "n d"],
    target: Float[Tensor, "n out"],
    error: bool,
    edit: Edit | None,
) -> Float[Tensor, "n out"]:
    """What stands in the place of `target`."""
    features = encode(coder, source)
    plain = decode(coder, features, source)
    if plain.shape != target.shape:
        raise InputError(
            f"The coder makes {tuple(plain.shape)} of activations of {tuple(source.shape)}, and "
            f"{tuple(target.shape)} stand where they are put. Take the hook point it was "
            "trained at."
        )
    # A copy: an edit may well write into what it is given.
    made = plain if edit is None else decode(coder, edit(features.clone()), source)
    if not error:
        return made
    # Without an edit nothing changes, not even by rounding.
    return target + (made - plain).to(target.dtype)


def encode(coder: Coder, x: Float[Tensor, "n d"]) -> Float[Tensor, "n feature"]:
    """Features, of whatever coder.

    Raises:
        InputError: the activations are not as wide as the coder's.
    """
    try:
        found: Tensor = coder.encode(x)
    except RuntimeError as error:
        raise InputError(
            f"The coder does not take activations of {x.shape[-1]} numbers: {error}. Take the hook "
            "point it was trained at."
        ) from error
    return found.to_dense() if found.is_sparse else found


def decode(coder: Coder, features: Tensor, x: Tensor) -> Tensor:
    """Activations, of whatever coder."""
    made: Tensor = (
        coder.decode(features, x) if isinstance(coder, SparseCoder) else coder.decode(features)
    )
    return made


def check_coder(coder: Any) -> None:
    """Refuse what does not encode and decode.

    Raises:
        InputError: naming it.
    """
    if isinstance(coder, type) or not isinstance(coder, Coder):
        raise InputError(
            "coder is what load_coder returned, or an object with encode and decode, not "
            f"{type(coder).__name__}."
        )


def point_name(model: VisionLanguageBridge, hook: str, block: int) -> str:
    """Full name of a hook point of a block.

    Raises:
        HookError: there is none of this name.
    """
    name = f"blocks.{block}.{PARENTS.get(hook, hook)}"
    if name not in model.hook_dict:
        raise HookError(
            f"Block {block} has no hook point {hook!r}. Use: {', '.join(PARENTS)}, or what follows "
            f"blocks.{block}. in a name of model.hook_dict, as ln2.hook_out."
        )
    return name
