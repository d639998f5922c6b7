"""Path patching against the three runs by plain hooks on the native model."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch
from attribution_cases import metric
from native_runs import layers_of, run_native
from tiny import random_image

import mm_lens
from mm_lens import HookError, InputError
from mm_lens.attribution import Node, path_patch

pytestmark = pytest.mark.every_family


@contextmanager
def hooked(module, edit, before=False):
    """`edit(x)` on what goes into a module, or comes out."""

    def enter(m, args):
        new = edit(args[0])
        return None if new is None else (new, *args[1:])

    def leave(m, args, out):
        whole = isinstance(out, tuple)
        new = edit(out[0] if whole else out)
        return None if new is None else (new, *out[1:]) if whole else new

    handle = (
        module.register_forward_pre_hook(enter) if before else module.register_forward_hook(leave)
    )
    yield
    handle.remove()


def plain(native, inputs, hooks):
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hooked(*hook))
        return run_native(native, inputs.native)


def keep(into, name):
    def edit(x):
        into[name] = x.clone()

    return edit


def part_of(x, heads, head):
    return x.view(*x.shape[:2], heads, -1)[:, :, head]


def with_part(x, heads, head, new, mask):
    out = x.clone().view(*x.shape[:2], heads, -1)
    out[:, :, head] = torch.where(mask[..., None], new, out[:, :, head])
    return out.view(x.shape)


@pytest.fixture(scope="module")
def pair(model):
    images = [random_image(12, 12, k) for k in (1, 2, 3, 4)]
    clean = model.prepare(["Eh?", "No!"], images[:2])
    corrupted = model.prepare(["Eh?", "No!"], images[2:])
    _, cache = model.run_with_cache(clean)
    return clean, corrupted, cache


def test_a_head_to_a_key_that_heads_share_and_to_the_logits(model, native, pair):
    """Head 1 of block 0, at the image, to key 1 of block 2 (grouped-query attention)."""
    clean, corrupted, cache = pair
    blocks, mask = layers_of(native), corrupted.layout.mask("visual")
    n, n_kv = 4, 2
    there: dict[str, torch.Tensor] = {}
    held: dict[str, torch.Tensor] = {}
    plain(native, clean, [(blocks[0].self_attn.o_proj, keep(there, "z"), True)])
    writers = [
        (x, (b, k))
        for b, layer in enumerate(blocks)
        for k, x in enumerate((layer.self_attn, layer.mlp))
    ]
    base = metric(plain(native, corrupted, [(m, keep(held, name)) for m, name in writers]))

    def send(x):
        return with_part(x, n, 1, part_of(there["z"], n, 1), mask)

    frozen = [(m, lambda x, name=name: held[name]) for m, name in writers if name != (0, 0)]
    read: dict[str, torch.Tensor] = {}
    direct = plain(
        native,
        corrupted,
        [
            (blocks[0].self_attn.o_proj, send, True),
            *frozen,
            (blocks[2].self_attn.k_proj, keep(read, "k")),
        ],
    )

    def receive(x):
        return with_part(x, n_kv, 1, part_of(read["k"], n_kv, 1), torch.ones_like(mask))

    through = plain(native, corrupted, [(blocks[2].self_attn.k_proj, receive)])
    options = {"axis": ["visual"]}
    sender = [Node("z", 0, 1)]
    got = path_patch(
        model, corrupted, cache, metric, sender, [Node("k", -1, 1), Node("q", 2, 3)], **options
    )
    want = (metric(through) - base).tolist()
    mine = got[got["receiver"] == "k 2.1"]
    assert mine["effect"].tolist() == pytest.approx(want, abs=1e-5)
    assert mine["effect"].abs().max() > 1e-4
    assert got["sender"].unique().tolist() == ["z 0.1"]
    logits = path_patch(model, corrupted, cache, metric, sender, **options)
    want = (metric(direct) - base).tolist()
    assert logits["effect"].tolist() == pytest.approx(want, abs=1e-5)


def test_all_that_a_state_does_goes_over_its_paths(model, pair):
    """From the last state there is one path: the direct one is the whole patch."""
    _, corrupted, cache = pair
    last = [Node("mlp_out", 2)]
    direct = path_patch(model, corrupted, cache, metric, last, axis={"end": "last"})
    whole = mm_lens.patching.get_act_patch_mlp_out(
        model, corrupted, cache, metric, axis={"end": "last"}, layers=[2], progress=False
    )
    assert direct["effect"].tolist() == pytest.approx(whole.effect().flatten().tolist(), abs=1e-5)


def test_what_is_no_path_is_refused(model, pair):
    _, corrupted, cache = pair
    for senders, receivers, kind, told in (
        ([Node("z", 1, 0)], [Node("q", 1, 0)], InputError, "does not come after the sender"),
        ([Node("z", 1, 9)], None, InputError, "has no head 9"),
        ([Node("mlp_out", 1, 0)], None, InputError, "it has none"),
        ([Node("q", 1)], None, HookError, "A sender is a Node of"),
        ([Node("z", 0)], [Node("k", 1, 3)], InputError, "no head 3: there are 2"),
        ([], None, InputError, "takes a sender"),
    ):
        with pytest.raises(kind, match=told):
            path_patch(model, corrupted, cache, metric, senders, receivers)
    with pytest.raises(InputError, match="must return a tensor of one value"):
        path_patch(model, corrupted, cache, lambda x: x.sum(), [Node("z", 0)])
