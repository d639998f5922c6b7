"""Seconds of each method over those of a loop written by hand: ``python benchmarks/methods.py``.

The loop runs the native model, with plain forward hooks of its own, and gives the same numbers (the
comparisons of tests/outside); nothing of mm_lens is in it. One thread; both are run in turns, times
are of the processor, and the best of `--repeats` counts, since other work on the machine can only
add.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

import mm_lens
from mm_lens import attribution, demo, looking
from mm_lens.causal import steering_hooks
from mm_lens.causal.knockout import knockout
from mm_lens.data import datasets
from mm_lens.dictionaries import SparseCoder, feature_values, splice_hooks
from mm_lens.looking.lenses.patchscopes import TARGET

Pair = tuple[Callable[[], Any], Callable[[], Any]]


@contextmanager
def hooked(module: Any, edit: Callable[[Any], Any], before: bool = False) -> Iterator[None]:
    """`edit(states)` on what enters a module, or leaves it."""

    def enter(m: Any, args: Any, kwargs: Any) -> Any:
        own = args[0] if args else kwargs["hidden_states"]
        new = edit(own)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def leave(m: Any, args: Any, out: Any) -> Any:
        whole = isinstance(out, tuple)
        new = edit(out[0] if whole else out)
        return None if new is None else (new, *out[1:]) if whole else new

    handle = (
        module.register_forward_pre_hook(enter, with_kwargs=True)
        if before
        else module.register_forward_hook(leave)
    )
    try:
        yield
    finally:
        handle.remove()


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def encode(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Features of states: the eight largest."""
    raw = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    top = raw.topk(8, dim=-1)
    return torch.zeros_like(raw).scatter(-1, top.indices, top.values.relu())


class Methods:
    """Both sides of each method, on one batch."""

    def __init__(self, model: Any, native: Any, clean: Any, inputs: Any, one: Any) -> None:
        self.model, self.native, self.clean, self.inputs = model, native, clean, inputs
        self.one, self.one_visual = one, one.layout.mask("visual")
        self.blocks = native.model.language_model.layers
        self.visual = inputs.layout.mask("visual")
        self.text = inputs.layout.mask("text")
        self.positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def run(self, inputs: Any = None, **options: Any) -> Any:
        given = (self.inputs if inputs is None else inputs).native
        return self.native(**given, position_ids=self.positions, **options)

    def logit_lens(self) -> Pair:
        language, head = self.native.model.language_model, self.native.lm_head

        @torch.no_grad()
        def loop() -> Any:
            states = []
            with hooked(self.blocks[0], states.append, before=True):
                hooks = [block.register_forward_hook(self._keeper(states)) for block in self.blocks]
                self.run(logits_to_keep=1)
            for hook in hooks:
                hook.remove()
            read = [head(language.norm(x[self.visual])).softmax(-1) for x in states]
            return [(x.topk(5), -(x * x.log()).sum(-1)) for x in read]

        return lambda: looking.visual_logit_lens(self.model, self.inputs, chunk_size=4096), loop

    def _keeper(self, states: list[Any]) -> Any:
        return lambda m, args, out: states.append(out[0] if isinstance(out, tuple) else out)

    def steering(self) -> Pair:
        vector = torch.linspace(-1, 1, self.model.cfg.d_model)
        layer = self.model.cfg.n_layers // 2

        @torch.no_grad()
        def loop() -> Any:
            def edit(x: Any) -> Any:
                return torch.where(self.visual[..., None], x + vector, x)

            with hooked(self.blocks[layer], edit):
                return self.run().logits

        @torch.no_grad()
        def ours() -> Any:
            hooks = steering_hooks(self.model, self.inputs, vector, "visual", layers=[layer])
            return self.model.run_with_hooks(self.inputs, fwd_hooks=hooks)

        return ours, loop

    def patching(self) -> Pair:
        @torch.no_grad()
        def loop() -> Any:
            clean: list[Any] = []
            with ExitStack() as stack:
                for block in self.blocks:
                    stack.enter_context(hooked(block, clean.append, before=True))
                self.run(self.clean, logits_to_keep=1)
            found = []
            for mask in (self.visual, self.text):
                for block, there in zip(self.blocks, clean, strict=True):

                    def edit(x: Any, mask: Any = mask, there: Any = there) -> Any:
                        return torch.where(mask[..., None], there, x)

                    with hooked(block, edit, before=True):
                        found.append(score(self.run(logits_to_keep=1).logits))
            return torch.stack(found)

        @torch.no_grad()
        def ours() -> Any:
            names = mm_lens.names("resid_pre")
            _, cache = self.model.run_with_cache(self.clean, names_filter=names)
            return mm_lens.patching.get_act_patch_resid_pre(
                self.model, self.inputs, cache, score, axis="modality", progress=False
            )

        return ours, loop

    def knockout(self) -> Pair:
        @torch.no_grad()
        def loop() -> Any:
            size = self.visual.shape[1]
            causal = torch.ones(size, size, dtype=torch.bool).tril()
            seen = causal[None] & self.inputs["attention_mask"].bool()[:, None]
            seen = seen & ~(self.text[:, :, None] & self.visual[:, None])
            seen |= torch.eye(size, dtype=torch.bool)
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

            def edit(m: Any, args: Any, kwargs: Any) -> Any:
                return args, {**kwargs, "attention_mask": mask[:, None]}

            hooks = [
                b.self_attn.register_forward_pre_hook(edit, with_kwargs=True) for b in self.blocks
            ]
            logits = self.run().logits
            for hook in hooks:
                hook.remove()
            return logits

        @torch.no_grad()
        def ours() -> Any:
            with knockout(self.model, self.inputs, query="text", key="visual"):
                return self.model(self.inputs)

        return ours, loop

    def gradient_input(self) -> Pair:
        def loop() -> Any:
            return self._gradient(lambda x: x)[0]

        return lambda: attribution.gradient_input(self.model, self.inputs, score), loop

    def integrated_gradients(self) -> Pair:
        def loop() -> Any:
            states = self._gradient(lambda x: x)[1]
            inside = self.visual[..., None].float()
            mean = (states * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True)
            start = torch.where(self.visual[..., None], mean, states)
            total = 0
            for k in range(4):
                point = start + (k + 0.5) / 4 * (states - start)
                total = total + self._gradient(lambda x, point=point: point)[0] / 4
            with torch.no_grad(), hooked(self.blocks[0], lambda x: start, before=True):
                score(self.run().logits)
            return total * (states - start)

        def ours() -> Any:
            return attribution.integrated_gradients(self.model, self.inputs, score, steps=4)

        return ours, loop

    def feature_values(self) -> Pair:
        weights, layer = self._coder(), self.model.cfg.n_layers // 2
        coder = SparseCoder("topk", weights, {"k": 8})

        @torch.no_grad()
        def loop() -> Any:
            states: list[Any] = []
            with hooked(self.blocks[layer], states.append):
                self.run(logits_to_keep=1)
            out = torch.full((2, *self.visual.shape), torch.nan)
            out[:, self.visual] = encode(weights, states[0][self.visual])[:, [3, 7]].T
            return out

        def ours() -> Any:
            return feature_values(self.model, self.inputs, coder, [3, 7], layer=layer)

        return ours, loop

    def splice(self) -> Pair:
        weights, layer = self._coder(), self.model.cfg.n_layers // 2
        coder = SparseCoder("topk", weights, {"k": 8})

        @torch.no_grad()
        def loop() -> Any:
            def edit(x: Any) -> Any:
                out = x.clone()
                found = encode(weights, x[self.visual])
                out[self.visual] = found @ weights["W_dec"] + weights["b_dec"]
                return out

            with hooked(self.blocks[layer], edit):
                return self.run().logits

        @torch.no_grad()
        def ours() -> Any:
            hooks = splice_hooks(self.model, self.inputs, coder, layer=layer, error=False)
            return self.model.run_with_hooks(self.inputs, fwd_hooks=hooks)

        return ours, loop

    def _coder(self) -> dict[str, torch.Tensor]:
        """Weights at random, four times as many features as the states are wide."""
        d = self.model.cfg.d_model
        draw = torch.Generator().manual_seed(0)
        weight = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=draw), dim=1)
        zero = {"b_enc": torch.zeros(4 * d), "b_dec": torch.zeros(d)}
        return {"W_enc": weight.T.contiguous(), "W_dec": weight, **zero}

    def jacobian_lens(self) -> Pair:
        """Of one row: there is a backward pass for each dimension."""
        one, mask, n = self.one, self.one_visual[0], len(self.blocks)

        def loop() -> Any:
            held: list[Any] = []

            def leave(x: Any) -> Any:
                held.append(x if held else x.detach().requires_grad_(True))
                return held[-1]

            with ExitStack() as stack:
                for block in self.blocks:
                    stack.enter_context(hooked(block, leave))
                self.native(**one.native, logits_to_keep=1)
            rows = []
            for i in range(held[-1].shape[-1]):
                total = held[-1][0, :-1, i].sum()
                found = torch.autograd.grad(total, held[:-1], retain_graph=True)
                rows.append([x[0, mask].mean(0) for x in found])
            return [torch.stack([row[k] for row in rows]) for k in range(n - 1)]

        return lambda: looking.fit_jacobian_lens(self.model, one, corpus="one row"), loop

    def patchscope(self) -> Pair:
        """Of 16 tokens of one row."""
        one, mask = self.one, self.one_visual & (self.one_visual.cumsum(1) <= 16)
        tokenizer, layer = self.model.tokenizer, self.model.cfg.n_layers // 2
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}

        @torch.no_grad()
        def loop() -> Any:
            states: list[Any] = []
            with hooked(self.blocks[layer], states.append, before=True):
                self.native(**one.native, logits_to_keep=1)
            given = tokenizer([TARGET] * 16, return_tensors="pt")
            at = given.input_ids.shape[1] - 1

            def put(x: Any) -> Any:
                if x.shape[1] == 1:
                    return None
                out = x.clone()
                out[:, at] = states[0][mask]
                return out

            with hooked(self.blocks[layer], put, before=True):
                found = self.native.generate(
                    **given, **options, pad_token_id=tokenizer.pad_token_id
                )
            return tokenizer.batch_decode(found[:, at + 1 :])

        return lambda: looking.patchscope(self.model, one, mask, layer=layer), loop

    def _gradient(self, change: Any) -> Any:
        held: list[Any] = []

        def edit(x: Any) -> Any:
            held.append(x.detach())
            held.append(change(x.detach()).clone().requires_grad_(True))
            return held[1]

        with hooked(self.blocks[0], edit, before=True):
            (gradient,) = torch.autograd.grad(score(self.run().logits).sum(), held[1])
        return gradient, held[0]


NAMES = (
    "logit_lens",
    "steering",
    "patching",
    "knockout",
    "gradient_input",
    "integrated_gradients",
    "feature_values",
    "splice",
    "jacobian_lens",
    "patchscope",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo/llava-next")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NAMES)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = mm_lens.load(args.model, check=False)
    path = demo.path(args.model) if args.model.startswith("demo/") else args.model
    native = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="sdpa").eval()
    native.requires_grad_(False)
    data = datasets.load("easy-vqa", "test", limit=2 * args.rows, seed=0)
    questions = ["what color is the shape?"] * args.rows
    images = [sample.image for sample in data]
    clean, inputs = (
        model.prepare(questions, x) for x in (images[: args.rows], images[args.rows :])
    )
    print(f"{args.model}: {args.rows} rows of {inputs.layout.shape[1]} positions, one thread")
    one = model.prepare(questions[0], images[0])
    methods = Methods(model, native, clean, inputs, one)
    for name in args.only or NAMES:
        sides = getattr(methods, name)()
        times: list[list[float]] = [[], []]
        for _ in range(args.repeats + 1):  # the first warms up
            for side, run in enumerate(sides):
                start = time.process_time()
                run()
                times[side].append(time.process_time() - start)
        ours, loop = (min(found[1:]) for found in times)
        print(f"{name:22}{ours:8.3f} s   loop {loop:8.3f} s   ratio {ours / loop:5.2f}")


if __name__ == "__main__":
    main()
