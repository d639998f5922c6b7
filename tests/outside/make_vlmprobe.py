"""Small random LLaVA-1.5 weights, and what vlmprobe 1.0.1 makes of them.

Run once, with transformers 5.3.0, torch 2.13 and vlmprobe 1.0.1, and a torchvision:
``python tests/outside/make_vlmprobe.py``. It writes tests/outside/vlmprobe, which the tests read
with none of these. Weights are saved by 5.3: what 5.23 saves lacks the tower's tensors when 5.3
reads it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "vlmprobe"
IMAGE, SIDE, PATCH = 100, 20, 4
TEXT = [[1, 40, 41], [42, 43, 44, 45]]
"""Tokens before and behind the image."""


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def inputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [*TEXT[0], *[IMAGE] * (SIDE // PATCH) ** 2, *TEXT[1]]
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(1, 3, SIDE, SIDE, generator=generator).double(),
    }


def build() -> torch.nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=20,
            num_attention_heads=2,
            num_hidden_layers=3,
            intermediate_size=36,
            projection_dim=14,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=103,
            hidden_size=24,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_hidden_layers=3,
            intermediate_size=44,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_index=IMAGE,
        image_seq_length=(SIDE // PATCH) ** 2,
        architectures=["LlavaForConditionalGeneration"],
    )
    torch.manual_seed(0)
    model = Llava(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "embed" in name:
                parameter.normal_()
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def main() -> None:
    from vlmprobe import Prober

    model = build()
    model.save_pretrained(FOLDER)
    model = model.double()
    model.set_attn_implementation("eager")
    probe = Prober(model)
    corrupted, clean = inputs(1), inputs(2)
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        found[name] = tensor.detach().contiguous().clone()

    keep("logits", model(**corrupted).logits)
    keep("logit_lens", probe.lens.logit(tokens="visual").run(corrupted).tensors["logits"])
    embedded = probe.lens.embed(tokens="visual").run(corrupted, top_k=3)
    keep("embed", embedded.tensors["similarities"])
    jacobian = probe.lens.jacobian(layers=[0, 1], tokens="visual")
    jacobian.fit(corrupted, skip_first=0)
    for layer, kernel in jacobian.kernels.items():
        keep(f"jacobian {layer}", kernel.jacobian)
    profile = probe.attention.profile(queries="last_prompt", include_attention=True).run(corrupted)
    keep("attention", profile.tensors["attention"][:, :, :, -1])
    keep("rollout", probe.attention.rollout().run(corrupted).tensors["rollout"][:, -1])
    relevance = probe.attention.relevance().run(corrupted, metric=score)
    keep("relevance", relevance.tensors["relevance"][:, -1])
    heads = probe.attention.head_logits().run(corrupted)
    keep("head_logits", heads.tensors["head_logits"][:, :, :, -1])
    options = {"source": clean, "metric": score}
    patched = probe.causal.patch(tokens="visual").run(corrupted, **options)
    keep("patch", patched.tensors["effect"])
    estimate = probe.causal.attribute(tokens="visual").run(corrupted, **options)
    keep("attribute", estimate.tensors["token_scores"])
    for joint in (False, True):
        cut = probe.causal.knockout(queries="text", keys="visual", joint=joint)
        keep(f"knockout {joint}", cut.run(corrupted, metric=score).tensors["effect"])
    direction = torch.linspace(-1, 1, 24).double()
    steered = probe.causal.steer(tokens="visual", strength=0.5)
    steered = steered.run(corrupted, metric=score, direction=direction)
    keep("steer", steered.tensors["effect"])
    path = probe.causal.path(
        senders=[(0, 1), (1, 3)],
        receivers=[(2, 1, "k")],
        sender_tokens="visual",
        receiver_tokens="all",
    )
    keep("path", path.sweep(corrupted, donor=clean, metric=score).tensors["effect"])
    for name, tensor in found.items():
        print(name, tuple(tensor.shape), flush=True)
    save_file(found, FOLDER / "outputs.safetensors")
    for path in FOLDER.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
