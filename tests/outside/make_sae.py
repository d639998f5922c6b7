"""Small sparse autoencoders of SAELens's own classes, and what these make of activations.

Run once, in an environment with sae-lens 6.54.12 (and transformer-lens 2.16.1):
``python tests/outside/make_sae.py``. It writes the folders below tests/outside/sae, which the tests
read without that package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "sae"
D, N = 24, 40


def main() -> None:
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    from sae_lens.saes.transcoder import (
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        Transcoder,
        TranscoderConfig,
    )

    kinds = {
        "standard": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
        "rescaled": (
            StandardSAE,
            StandardSAEConfig,
            {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
        ),
        "gated": (GatedSAE, GatedSAEConfig, {}),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
        "topk": (TopKSAE, TopKSAEConfig, {"k": 3}),
        "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
        "transcoder": (Transcoder, TranscoderConfig, {"d_out": D, "apply_b_dec_to_input": False}),
        "skip": (SkipTranscoder, SkipTranscoderConfig, {"d_out": D, "apply_b_dec_to_input": False}),
        "jumprelu-transcoder": (
            JumpReLUTranscoder,
            JumpReLUTranscoderConfig,
            {"d_out": D, "apply_b_dec_to_input": False},
        ),
    }
    torch.manual_seed(0)
    x = torch.randn(11, D)
    for name, (kind, config, options) in kinds.items():
        coder = kind(config(d_in=D, d_sae=N, **options))
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.normal_(std=0.4)
            if hasattr(coder, "threshold"):
                coder.threshold.uniform_(0.1, 0.9)
            features = coder.encode(x)
            if features.is_sparse:
                features = features.to_dense()
            made = coder(x)
        coder.save_model(FOLDER / name)
        save_file(
            {"x": x, "features": features.contiguous(), "made": made.contiguous()},
            FOLDER / name / "outputs.safetensors",
        )


if __name__ == "__main__":
    main()
