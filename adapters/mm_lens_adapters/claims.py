"""What papers claim about the families of this package, for `mm_lens.compare`.

MLLM-Microscope (arXiv 2606.00909), abstract: the main and residual streams of both models are
highly linear for tokens of both modalities; the linearity of LLaVA-NeXT's image tokens declines
slightly over the layers and OmniFusion's does not; OmniFusion's image tokens have the higher
intrinsic dimension throughout; OmniFusion's anisotropy stays low.
"""

TILED = "LlavaNextForConditionalGeneration"
WHOLE = "OmniFusionForConditionalGeneration"

# Statement (`mm_lens.comparing.statements`), then architectures: whether it is claimed to be so.
CLAIMS: dict[str, dict[tuple[str, ...], bool]] = {
    "linear": {(TILED,): True, (WHOLE,): True},
    "declines": {(TILED,): True, (WHOLE,): False},
    "higher_dimension": {(WHOLE, TILED): True},
    "low_anisotropy": {(WHOLE,): True},
}
