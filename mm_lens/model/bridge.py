"""The bridge: a `TransformerBridge` that takes images, knows what every position is, and never
runs blind.

Put on a booted bridge by changing its class (`loading.load`), since TransformerLens builds its own
class. Everything TransformerLens documents keeps its meaning; what is added: `Inputs` wherever
tokens go, `prepare`, `bound`, hook points per modality, and errors where an edit would do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformer_lens.model_bridge import TransformerBridge

from mm_lens.arguments import check_hooks, check_reached, check_return_type
from mm_lens.data.pictures import Picture
from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.model import inputs as _inputs
from mm_lens.model.binding import Binding, guard_patch, unpack
from mm_lens.model.cache import LayoutCache, adjust_entries, choose_cached
from mm_lens.model.families import Family, without_own
from mm_lens.model.forward import ForwardContext
from mm_lens.model.hooks import GROUPS, install_views, uninstall_views
from mm_lens.model.inputs import Inputs, Prompt
from mm_lens.model.naming import NamedHooks, Names, suggesting
from mm_lens.model.native import add_left_out
from mm_lens.model.parts.copying import Copied
from mm_lens.model.parts.guards import guard
from mm_lens.model.parts.quiet import quieten, restore
from mm_lens.model.parts.spelling import Spelled
from mm_lens.model.report import Report
from mm_lens.model.running import generation
from mm_lens.model.running.asking import Asked
from mm_lens.model.running.attention_hooks import hook_native_attention, unhook_native_attention
from mm_lens.model.running.methods import list_methods

Hooks: TypeAlias = "Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]"


class VisionLanguageBridge(Copied, Asked, Spelled, NamedHooks):
    """A `TransformerBridge` with hook points for visual and text tokens. Made by `mm_lens.load`."""

    # At image positions embed.hook_out is the placeholder's own row, which the image features
    # replace: what enters the residual stream is block 0's input.
    hook_aliases = {**TransformerBridge.hook_aliases, "hook_embed": "blocks.0.hook_in"}  # noqa: RUF012

    family: Family
    attention: str
    context: ForwardContext
    report: Report
    """What the check at load found."""

    _watch: list[RemovableHandle]

    # ---- installing and uninstalling ----

    @staticmethod
    def install(bridge: TransformerBridge, family: Family, attention: str) -> VisionLanguageBridge:
        """Turn a booted bridge into this class, in place."""
        bridge.__class__ = VisionLanguageBridge
        assert isinstance(bridge, VisionLanguageBridge)
        bridge.family, bridge.attention = family, attention
        bridge.context, bridge.report = ForwardContext(family), Report()
        bridge._watch = bridge.context.attach(bridge.original_model)
        bridge._dead = {re.compile(k): v for k, v in family.dead_hooks(attention).items()}
        bridge._refresh_embed_alias("blocks.0.hook_in")
        install_views(bridge, bridge.context, GROUPS)
        hook_native_attention(bridge)
        for pattern, remedy in family.inert_hooks().items():
            for name, point in bridge._hook_registry.items():
                if re.fullmatch(pattern, name):
                    guard(point, remedy)
        guard(
            bridge._hook_registry["embed.hook_out"],
            "Image positions take their embedding from the vision tower, not from the token "
            "table: edit hook_embed (blocks.0.hook_in) or blocks.0.visual.hook_resid_pre.",
            bridge._image_positions,
        )
        quieten(bridge)
        return bridge

    def uninstall(self) -> TransformerBridge:
        """Take everything mm_lens put on after boot off again; returns the plain bridge."""
        uninstall_views(self)
        unhook_native_attention(self)
        restore(self)
        for handle in self._watch:
            handle.remove()
        self.__class__ = TransformerBridge  # type: ignore[assignment]
        VisionLanguageBridge._refresh_embed_alias(self, "embed.hook_out")
        for name in ("family", "attention", "context", "report", "_watch", "_dead", "_hook_dict"):
            self.__dict__.pop(name, None)
        return self

    def _refresh_embed_alias(self, target: str) -> None:
        self._register_aliases()
        self._hook_registry["hook_embed"] = self._hook_registry[target]

    def _image_positions(self, tensor: Tensor) -> Tensor | None:
        return self.context.frame.layout.mask("visual").to(tensor.device)

    # ---- inputs ----

    def prepare(
        self,
        text: Prompt | Sequence[Prompt],
        images: Picture | Sequence[Any] | None = _inputs.OMITTED,
        *,
        chat_template: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        **unknown: Any,
    ) -> Inputs:
        """Turn prompts and images into what every tool takes: one prompt or a batch.

        ```python
        inputs = model.prepare("what color is the shape?", "shape.png")
        batch = model.prepare(["what is it?", "are these alike?"], [image, [one, other]])
        print(inputs)                    # how many positions are visual, text, padding
        logits = model(inputs)           # inputs go wherever TransformerLens takes tokens
        ```

        Args:
            text: one prompt, or a list of them. A prompt is a text, or chat messages as
                transformers takes them.
            images: for one prompt an image, a list of images, or None: there is none. For a list of
                prompts, one such entry for each. An image is a path, a PIL image, bytes, an open
                file, a NumPy array or a torch tensor (docs/pictures.md).
            chat_template: True renders texts as a user's turn, False takes them as they are; None
                renders those without image placeholders, where the processor has a template.
            padding_side: where shorter rows of a batch are padded; None takes the tokenizer's side.
                Generation needs "left".
            unknown: refused, with the name that is meant.

        Returns:
            `Inputs`: the tensors (`input_ids`, `pixel_values`, …), and `layout`, which says what
            every position is.

        Raises:
            InputError: a prompt is neither text nor messages, an image cannot be read, images and
                placeholders do not match, or the chat template drops something.
        """
        given = {"chat_template": chat_template, "padding_side": padding_side, **unknown}
        own: dict[str, Any] = {"device": self.cfg.device or "cpu", "tell": self.context.tell}
        return _inputs.prepare(self.family, self.processor, text, images, **given, **own)

    @contextmanager
    def bound(self, *inputs: Mapping[str, Any]) -> Iterator[VisionLanguageBridge]:
        """Give tools that take only tokens the image of `inputs`.

        Inside, every call with tokens that hold image placeholders and comes without pixels gets
        the pixels (and, where the shape fits, the attention mask) of `inputs`. Copies of the tokens
        may differ in their text; each row must hold as many placeholders as the row of `inputs`.
        Tokens of other prepared inputs are refused: bind these. A batch of copies of one bound row
        is filled by repeating its images. Calls that start from embeddings (`start_at_layer`) take
        the layout of `inputs`.

        Tools that run two inputs, clean and corrupted, are given both; they must be of one layout.
        Pass them `input_ids` itself: it tells which image is meant (see `mm_lens.model.binding`).

        ```python
        with model.bound(corrupted, clean):
            patching.get_act_patch_resid_pre(model, corrupted.input_ids, clean_cache, metric)
            attribution_patch(model, clean.input_ids, corrupted.input_ids, metric)
        ```

        Raises:
            InputError: the inputs are of different layouts.
        """
        with self.context.bind(Binding(inputs, self.family)):
            yield self

    def methods(self) -> Any:
        """A table of the methods of mm_lens: which work on this model, and why the rest does not.

        As the check at load found it: loaded with `check=False`, nothing is known against any.
        """
        return list_methods(self)

    def text_only_allowed(self) -> AbstractContextManager[None]:
        """Inside, inputs without an image are meant: hooks of visual tokens pass over them.

        Outside they raise, since the image may have been forgotten; for inputs of
        `prepare(text, None)` they warn once.
        """
        return self.context.text_only_allowed()

    def _unpack(self, input: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return unpack(input, kwargs, self.context.bound)

    # ---- running ----

    def forward(self, input: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `TransformerBridge.forward`; `input` may also be what `prepare` returns.

        With `return_type="loss"`, targets that are image placeholders, padding, or markers without
        a logit are left out.
        """
        tokens, kwargs = self._unpack(input, kwargs)
        return_type = check_return_type(args[0] if args else kwargs.get("return_type", "logits"))
        if return_type in ("loss", "both") and kwargs.get("labels") is None:
            mask = kwargs.get("attention_mask")
            kwargs["labels"] = _inputs.find_targets(tokens, mask, self.family, self.cfg.d_vocab)
        kwargs |= generation.decoding_positions(self, tokens, kwargs)
        with self.context.guarded():
            return super().forward(tokens, *args, **kwargs)

    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `TransformerBridge.run_with_hooks`; `input` may also be what `prepare` returns.

        ```python
        edit = ("blocks.3.visual.hook_resid_post", lambda rows, hook: rows * 0)
        logits = model.run_with_hooks(inputs, fwd_hooks=[edit])
        ```
        """
        tokens, kwargs = self._unpack(input, kwargs)
        hooks = self._guard_hooks(fwd_hooks), self._guard_hooks(bwd_hooks)
        check_reached(
            [name for name, _ in hooks[0]], kwargs.get("stop_at_layer"), self.cfg.n_layers
        )
        with self.context.guarded():
            return super().run_with_hooks(tokens, *hooks, *args, **kwargs)

    def hooks(self, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens."""
        return super().hooks(
            self._guard_hooks(fwd_hooks), self._guard_hooks(bwd_hooks), *args, **kwargs
        )

    def run_with_cache(
        self,
        input: Any = None,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: Names = None,
        **kwargs: Any,
    ) -> Any:
        """As `TransformerBridge.run_with_cache`; the cache is a `LayoutCache`.

        Without `names_filter` every hook point of the full stream is cached; the cache gives its
        views.

        ```python
        logits, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(["resid_pre", "z"]))
        cache["resid_pre", 5, "visual"]      # [batch, n_visual_max, d_model], zero padded
        ```

        Raises:
            HookError: `pos_slice` with hook points per modality, whose rows it would count.
        """
        tokens, kwargs = self._unpack(input, kwargs)
        names = choose_cached(self, self._filter(names_filter), kwargs.get("pos_slice"))
        with self.context.guarded(), suggesting(names_filter, self.hook_dict):
            output, cache = super().run_with_cache(  # type: ignore[call-overload]
                tokens,
                return_cache_object=return_cache_object,
                remove_batch_dim=remove_batch_dim,
                names_filter=names,
                **kwargs,
            )
        entries = cache.cache_dict if return_cache_object else cache
        adjust_entries(entries, names_filter, kwargs.get("stop_at_layer"), self.cfg.n_layers)
        if return_cache_object:
            LayoutCache.of(cache, self.context.finished, kwargs.get("pos_slice"))
        return output, cache

    def generate(self, input: Any = "", *args: Any, **kwargs: Any) -> Any:
        """As `TransformerBridge.generate`, by the model's own loop (`running.generation`).

        `input` may also be what `prepare` returns. Also without KV cache every step sees the image.
        Further arguments are those of transformers' `generate`, as `num_beams`.

        ```python
        model.generate(inputs, max_new_tokens=50, do_sample=False, return_type="str")
        ```

        Raises:
            InputError: rows are padded on the right: generation would continue from padding; or
                there is no such argument.
            MMLensError: the check at load found that this model is wrong with its KV cache.
        """
        tokens, kwargs = self._unpack_for_generation(input, kwargs)
        if generation.follows_own_loop(self, tokens, args, kwargs):
            with self.context.guarded(), self.context.writes():
                return super().generate(tokens, *args, **kwargs)
        with self.context.guarded(), self.context.writes(), self._bound_to(tokens, kwargs):
            return generation.generate(self, tokens, *args, **kwargs)

    def generate_stream(
        self, input: Any = "", *args: Any, **kwargs: Any
    ) -> Generator[Any, None, None]:
        """As `TransformerBridge.generate_stream`, with images.

        Raises:
            InputError: rows are padded on the right.
        """
        tokens, kwargs = self._unpack_for_generation(input, kwargs)
        asked, tensors = generation.split_stream(kwargs)
        stream = super().generate_stream(tokens, *args, **asked)
        if not tensors:
            return stream
        return generation.steps_of(stream, self, {"input_ids": tokens, **tensors})

    def hf_generate(self, input: Any = "", *args: Any, **kwargs: Any) -> Any:
        """As `TransformerBridge.hf_generate`; `input` may also be what `prepare` returns.

        Raises:
            InputError: rows are padded on the right.
        """
        tokens, kwargs = self._unpack_for_generation(input, kwargs)
        with self.context.guarded(), self.context.writes(), self._bound_to(tokens, kwargs):
            return super().hf_generate(tokens, *args, **without_own(kwargs))

    def _bound_to(self, tokens: Any, kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
        """Bind the images of a call: transformers encodes them before the first forward pass."""
        if not (pixels := self.family.pixels(kwargs)):
            return nullcontext()
        mask = {k: v for k, v in kwargs.items() if k == "attention_mask"}
        return self.bound({"input_ids": tokens, **mask, **pixels})

    def _unpack_for_generation(self, input: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("use_past_kv_cache", kwargs.get("use_cache", True)) is not False:
            self.report.require("Generation with a KV cache", "cache")
        tokens, kwargs = self._unpack(input, kwargs)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask[:, -1].all()):
            raise InputError(
                "Some rows are padded on the right: generation would continue from padding. "
                + (
                    "Generate from one prompt at a time: rows of this model must be padded there."
                    if self.family.padding_side == "right"
                    else 'Prepare the batch with padding_side="left".'
                )
            )
        return tokens, kwargs

    def enable_compatibility_mode(self, *args: Any, **kwargs: Any) -> None:
        """As in TransformerLens.

        Raises:
            InputError: the unembedding would be centred along the wrong axis: TransformerLens takes
                it by its shape, and vocabulary and d_model are of the same size.
        """
        centred = kwargs.get("center_unembed", True) and not kwargs.get("no_processing", False)
        if centred and self.cfg.d_vocab == self.cfg.d_model:
            raise InputError(
                f"d_vocab and d_model are both {self.cfg.d_model}: TransformerLens would centre "
                "the unembedding along the wrong axis and corrupt the logits. Pass "
                "center_unembed=False."
            )
        super().enable_compatibility_mode(*args, **kwargs)

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As in TransformerLens, and complete: it would leave out the vision tower's layers."""
        if destination is not None or prefix:
            return super().state_dict(destination, prefix, keep_vars)
        state = add_left_out(super().state_dict(keep_vars=True), self.original_model)
        return state if keep_vars else {name: x.detach() for name, x in state.items()}

    # ---- names ----

    def _guard_hooks(self, hooks: Hooks) -> list[tuple[Any, Callable[..., Any]]]:
        found = []
        for name, hook in check_hooks(hooks):
            where = name if isinstance(name, str) else self._narrow(name).__contains__
            found.append((where, guard_patch(hook, self._layout_now)))
        return found

    def _layout_now(self) -> TokenLayout:
        return self.context.frame.layout

    def get_caching_hooks(self, names_filter: Names = None, *args: Any, **kwargs: Any) -> Any:
        """As in TransformerLens, with the spellings `blocks.3.hook_visual_resid_post`.

        Without `names_filter` the hook points of the full stream that can fire.

        Raises:
            HookError: a hook point that never fires is named, or `pos_slice` is given with hook
                points per modality.
        """
        names, pos_slice = self._filter(names_filter), kwargs.get("pos_slice")
        names = choose_cached(self, names, args[4] if len(args) > 4 else pos_slice, once=True)
        if not callable(names):  # before anything is attached
            self._check_hook_fireable(*([names] if isinstance(names, str) else names))
        return super().get_caching_hooks(names, *args, **kwargs)
