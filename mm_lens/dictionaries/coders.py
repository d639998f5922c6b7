"""Sparse autoencoders and transcoders: what encodes and decodes, and files of the common kinds.

Anything with `encode` and `decode` is a coder: SAELens's own classes are. `load_coder` reads the
folders that SAELens writes (`cfg.json`, `sae_weights.safetensors`) without that package:

With `s` what the file's normalisation makes of `x`, less `b_dec` where the file says so, and
`p = s W_enc + b_enc`:

| architecture | features |
|---|---|
| standard, transcoder, skip_transcoder | `relu(p)` |
| jumprelu, jumprelu_transcoder | `relu(p)` where `p > threshold`, else 0 |
| topk | the `k` largest of `p`, where positive; of `p · ‖decoder row‖` where the file says so |
| gated | `relu(s W_enc exp(r_mag) + b_mag)` where `s W_enc + b_gate > 0`, else 0 |

Decoded is `f W_dec + b_dec` (and `x W_skip`), out of the normalisation again. What a file asks for
beyond that is refused: a coder that is nearly the right one gives features of something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import fspath
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mm_lens import demo
from mm_lens.errors import DataError

ARCHITECTURES = (
    "standard",
    "jumprelu",
    "topk",
    "gated",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
)
NORMALISATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
NEEDED = {
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "skip_transcoder": ("b_enc", "W_skip"),
}
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@runtime_checkable
class Coder(Protocol):
    """What features are made by, and what is made of them."""

    def encode(self, x: Any) -> Any:
        """Features [..., feature] of activations [..., d]."""
        ...

    def decode(self, features: Any) -> Any:
        """Activations of features."""
        ...


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """An autoencoder or transcoder of the module's table.

    Attributes:
        architecture: which.
        weights: by the names of SAELens.
        config: of the file: `k`, normalisation, and whether `b_dec` is taken off the input.
        hook_name: hook point that it was trained at; "" if the file does not say.
    """

    architecture: str
    weights: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    hook_name: str = ""

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.weights["W_dec"].shape[0]

    @property
    def transcodes(self) -> bool:
        """Whether what is decoded stands at another place than what is encoded."""
        return self.architecture.endswith("transcoder")

    def encode(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n feature"]:
        """Features of activations."""
        w = self._on(x)
        s, _ = self._normalise(x.to(w["W_enc"].dtype))
        if self.config.get("apply_b_dec_to_input", True):
            s = s - w["b_dec"]
        raw = s @ w["W_enc"]
        if self.architecture == "gated":
            size = (s @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
            return torch.where(raw + w["b_gate"] > 0, size, 0)
        raw = raw + w["b_enc"]
        if "threshold" in NEEDED.get(self.architecture, ()):
            return torch.where(raw > w["threshold"], raw.relu(), 0)
        if self.architecture == "topk":
            norms = w["W_dec"].norm(dim=-1) if self._rescaled else torch.ones_like(raw[..., :1])
            top = (raw * norms).topk(int(self.config["k"]), dim=-1)
            out = torch.zeros_like(raw)
            return out.scatter(-1, top.indices, top.values.relu())
        return raw.relu()

    def decode(
        self, features: Float[Tensor, "*n feature"], x: Float[Tensor, "*n d"] | None = None
    ) -> Float[Tensor, "*n out"]:
        """Activations of features.

        Args:
            features: of `encode`.
            x: what they are features of: it has the scale where the file normalises each
                activation, and a skip connection reads it.

        Raises:
            DataError: `x` is needed, and not given.
        """
        w = self._on(features)
        if self.architecture == "topk" and self._rescaled:
            features = features / w["W_dec"].norm(dim=-1)
        out = features @ w["W_dec"] + w["b_dec"]
        scaled = self.config.get("normalize_activations") in NORMALISATIONS[2:]
        if x is None and (scaled or "W_skip" in w):
            raise DataError(
                "This coder's decoding needs the activations that were encoded: "
                "decode(features, x)."
            )
        if x is not None and "W_skip" in w:
            out = out + x.to(out.dtype) @ w["W_skip"].T
        if x is not None and scaled and not self.transcodes:
            _, back = self._normalise(x.to(out.dtype))
            out = out * back[0] + back[1]
        return out

    @property
    def _rescaled(self) -> bool:
        return bool(self.config.get("rescale_acts_by_decoder_norm", False))

    def _on(self, like: Tensor) -> dict[str, Tensor]:
        return {name: x.to(like.device) for name, x in self.weights.items()}

    def _normalise(self, x: Tensor) -> tuple[Tensor, tuple[Any, Any]]:
        """Activations as the coder knows them, and scale and shift of the way back."""
        how = self.config.get("normalize_activations", "none")
        if how == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            spread = (x - mean).std(-1, keepdim=True)
            return (x - mean) / (spread + 1e-5), (spread, mean)
        if how == "constant_norm_rescale":
            scale = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
            return x * scale, (1 / scale, 0)
        return x, (1, 0)


def load_coder(path: str | Path) -> SparseCoder:
    """Read a folder that SAELens wrote.

    ```python
    coder = load_coder("sae/layer_4")
    coder.encode(cache["resid_post", 4, "visual"])
    ```

    Args:
        path: with `cfg.json` and `sae_weights.safetensors`; or a demo model that has one
            ("demo/llava-next").

    Raises:
        InputError: no autoencoder ships for the states of this demo model.
        DataError: a file is missing or damaged; the architecture, or what it asks for, is not one
            of the module's table.
    """
    name = fspath(path)
    folder = demo.dictionary_path(name) if name.startswith("demo/") else Path(name)
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} holds no mapping")
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{folder} cannot be read as a sparse autoencoder: {error}. Give a folder with "
            f"{CONFIG} and {WEIGHTS}, as SAELens writes them."
        ) from error
    kind = config.get("architecture", "standard")
    chosen = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if kind == "standard" and chosen == "topk":  # as SAELens wrote it before version 6
        kind, config = "topk", {**config, **config.get("activation_fn_kwargs", {})}
    _check(folder, kind, config, weights)
    told = config.get("metadata") or {}
    return SparseCoder(
        kind, weights, config, told.get("hook_name") or config.get("hook_name") or ""
    )


def _check(
    folder: Path, kind: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    if kind not in ARCHITECTURES:
        raise DataError(
            f"{folder} holds an autoencoder of the architecture {kind!r}; these are known: "
            f"{', '.join(ARCHITECTURES)}. Load it with its own package: any object with encode and "
            "decode will do."
        )
    how = config.get("normalize_activations") or "none"
    if how not in NORMALISATIONS:
        raise DataError(
            f"{folder} normalises its activations by {how!r}; these are known: "
            f"{', '.join(NORMALISATIONS)}. Load it with its own package."
        )
    needed = ("W_enc", "W_dec", "b_dec", *NEEDED.get(kind, ("b_enc",)))
    if missing := [name for name in needed if name not in weights]:
        raise DataError(
            f"{folder} lacks the weight {missing[0]!r} of a {kind} autoencoder; it holds "
            f"{', '.join(sorted(weights))}. Get the files again."
        )
    if kind == "topk" and not config.get("k"):
        raise DataError(f"{folder} does not say how many features stay (k). Get {CONFIG} again.")
