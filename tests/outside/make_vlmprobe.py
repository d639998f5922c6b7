"""Small random weights of three families, and what vlmprobe 1.0.1 makes of them.

Run once, with transformers 5.3.0, torch 2.13 and vlmprobe 1.0.1, and a torchvision:
``python tests/outside/make_vlmprobe.py``. It writes tests/outside/vlmprobe, which the tests read
with none of these. Weights are saved by 5.3: what 5.23 saves lacks the tower's tensors when 5.3
reads it. LLaVA-NeXT is none of vlmprobe's families: it runs there by a line in its table of model
contracts (`bind`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "vlmprobe"
CODER = Path(__file__).parent / "sae" / "jumprelu" / "sae_weights.safetensors"
IMAGE, START, END, PATCH, WIDTH = 100, 102, 103, 4, 24
BEFORE, AFTER = [1, 40, 41], [42, 43, 44, 45]
"""Tokens before and behind the image."""
TARGET, TEXT, PLACE = [1, 4, 16, 88, 17], "a?b", 3
"""Another prompt, without an image, and where a state is put into it."""
DIRECTION = torch.linspace(-1, 1, WIDTH).double()
STRENGTH = 2.0
RECEIVERS = [(2, 1, "k"), (2, 0, "v")]
WEIGHT, TEMPERATURE, FEATURES, SCALE = 8.0, 3.0, [1, 5, 30], 2.5
LANGUAGE = {
    "vocab_size": 107,
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 44,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


@dataclass(frozen=True)
class Case:
    """A family: its model, the height and width of a picture, and what the model is given."""

    build: Callable[[], torch.nn.Module]
    picture: tuple[int, int]
    tokens: list[int]
    pixels: tuple[int, ...]
    more: dict[str, list[Any]]

    def inputs(self, seed: int) -> dict[str, torch.Tensor]:
        """Random pixels of that seed, between the same words."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([[*BEFORE, *self.tokens, *AFTER]])
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(self.pixels, generator=generator).double(),
            **{name: torch.tensor(rows) for name, rows in self.more.items()},
        }
        if START in self.tokens:
            given["mm_token_type_ids"] = (ids == IMAGE).long()
        return given


def text_only() -> dict[str, torch.Tensor]:
    """The same words without the picture."""
    ids = torch.tensor([[*BEFORE, *AFTER]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 3] - logits[:, -1, 5]


def clip(side: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=20,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=36,
        projection_dim=14,
        image_size=side,
        patch_size=PATCH,
    )


def llava() -> torch.nn.Module:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=clip(20),
        text_config=LlamaConfig(**{**LANGUAGE, "vocab_size": 103}),
        image_token_index=IMAGE,
        image_seq_length=25,
    )
    return randomise(LlavaForConditionalGeneration, config)


def llava_next() -> torch.nn.Module:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig

    config = LlavaNextConfig(
        vision_config=clip(12),
        text_config=MistralConfig(**LANGUAGE),
        image_token_index=IMAGE,
        image_seq_length=9,
        image_grid_pinpoints=[[12, 24], [24, 12], [24, 24], [36, 12], [12, 36], [24, 36]],
    )
    # With seed 0 it writes image tokens, and vlmprobe's loop then asks for their pixels.
    return randomise(LlavaNextForConditionalGeneration, config, seed=1)


def qwen() -> torch.nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 36,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            # 5.3 multiplies the place of an image in time by this, which 5.23 no longer does.
            "tokens_per_second": 1,
        },
        text_config={**LANGUAGE, "rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=101,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return randomise(Qwen2_5_VLForConditionalGeneration, config)


def randomise(kind: type, config: Any, seed: int = 0) -> torch.nn.Module:
    """Weights of a size at which every part matters."""
    config.architectures = [kind.__name__]
    torch.manual_seed(seed)
    model = kind(config).float().eval()
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


CASES = {
    "llava-1.5": Case(llava, (20, 20), [IMAGE] * 25, (1, 3, 20, 20), {}),
    # An overview of 9, two tiles of 9 in three columns, a newline after each of six rows.
    "llava-next": Case(
        llava_next, (20, 12), [IMAGE] * 33, (1, 3, 3, 12, 12), {"image_sizes": [[20, 12]]}
    ),
    "qwen2.5-vl": Case(
        qwen, (24, 32), [START, *[IMAGE] * 12, END], (48, 96), {"image_grid_thw": [[1, 6, 8]]}
    ),
}
"""By the names of `tiny_families` and `conftest`."""


def bind(model: torch.nn.Module) -> Any:
    """A prober of the model, of whichever family."""
    from vlmprobe import Prober
    from vlmprobe.adapters.huggingface import MODEL_CONTRACTS

    name = "transformers.models.llava_next.modeling_llava_next"
    contract = ("model.language_model", ("image_token_index",))
    MODEL_CONTRACTS[name, "LlavaNextForConditionalGeneration"] = contract
    probe = Prober(model)
    probe.spec.edges["all that enters block 0"] = probe.spec.embeddings
    return probe


def coder(probe: Any, layer: int) -> tuple[Any, dict[str, Any]]:
    """SAELens's small JumpReLU autoencoder as one of vlmprobe's, and its binding."""
    from vlmprobe.sae import SAEConfig, SparseAutoencoder, build_sae_binding

    weights = {name: x.double() for name, x in load_file(CODER).items()}
    names = ("model_id", "tokenizer_id", "preprocessing_id", "calibration_id")
    binding = build_sae_binding(probe, layer, **dict.fromkeys(names, "random"))
    d, n = weights["W_enc"].shape
    made = SparseAutoencoder(
        SAEConfig("jumprelu", d, n, input_normalization="none"), binding, dtype=torch.float64
    )
    state = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
        "decoder.bias": weights["b_dec"],
        "threshold": weights["threshold"],
    }
    made.load_state_dict({**made.state_dict(), **state})
    made.is_fitted = True
    return made, binding


def run(case: Case, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every method that there is here as well."""
    probe = bind(model)
    corrupted, clean = case.inputs(1), case.inputs(2)
    places = (corrupted["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    metric = {"metric": score}
    found = {"logits": model(**corrupted).logits.float()}

    lens = probe.lens.logit(tokens="visual").run(corrupted)
    found["logit_lens"] = lens.tensors["logits"].float()
    tuned = probe.lens.tuned(layers=[0, 1], tokens="visual")
    tuned.fit(corrupted, steps=20, lr=0.02)
    for layer, kernel in tuned.kernels.items():
        found[f"tuned weight {layer}"] = kernel.translator.weight
        found[f"tuned bias {layer}"] = kernel.translator.bias
    found["tuned"] = tuned.run(corrupted).tensors["logits"].float()
    embedded = probe.lens.embed(tokens="visual").run(corrupted, top_k=4).tensors
    # Without the placeholder's row, which no state ever held, and which it names as any other.
    near = embedded["similarities"].masked_fill(embedded["token_ids"] == IMAGE, -2)
    found["embed"] = near.topk(3).values
    jacobian = probe.lens.jacobian(layers=[0, 1], tokens="visual")
    jacobian.fit(corrupted, skip_first=0)
    for layer, kernel in jacobian.kernels.items():
        found[f"jacobian {layer}"] = kernel.jacobian
    target = {"input_ids": torch.tensor([TARGET])}
    target["attention_mask"] = torch.ones_like(target["input_ids"])
    said = []
    for place in places:
        scope = probe.lens.patchscope(
            layers=[0], source_position=place, target_layer=1, target_position=PLACE
        )
        said.append(scope.run(corrupted, target_inputs=target).tensors["logits"][0, 0, -1])
    found["patchscope"] = torch.stack(said).argmax(-1)

    profile = probe.attention.profile(queries="last_prompt", include_attention=True).run(corrupted)
    found["attention"] = profile.tensors["attention"][:, :, :, -1]
    found["group_mass"] = profile.tensors["group_mass"][:, 0, :, -1]
    rollout = probe.attention.rollout().run(corrupted)
    found["rollout"] = rollout.tensors["rollout"][:, -1]
    relevance = probe.attention.relevance().run(corrupted, **metric)
    found["relevance"] = relevance.tensors["relevance"][:, -1]
    heads = probe.attention.head_logits().run(corrupted)
    found["head_logits"] = heads.tensors["head_logits"][:, :, :, -1]
    weighted = probe.attention.reweight(weight=WEIGHT).run(corrupted, **metric)
    found["reweight"] = weighted.tensors["effect"]
    cooled = probe.attention.temperature(temperature=TEMPERATURE).run(corrupted, **metric)
    found["temperature"] = cooled.tensors["effect"]

    swap = {"source": clean, **metric}
    patched = probe.causal.patch(tokens="visual").run(corrupted, **swap)
    found["patch"] = patched.tensors["effect"]
    estimate = probe.causal.attribute(tokens="visual").run(corrupted, **swap)
    found["attribute"] = estimate.tensors["token_scores"]
    for steps in (1, 4):
        edge = probe.causal.eap_ig(steps=steps).run(corrupted, **swap)
        found[f"eap_ig {steps}"] = edge.tensors["edge_scores"]
    start = probe.causal.attribute(layers=[0], tokens="all")
    start.probe.spec.residuals[0], kept = probe.spec.embeddings, probe.spec.residuals[0]
    found["attribute embeddings"] = start.run(corrupted, **swap).tensors["token_scores"].sum()
    probe.spec.residuals[0] = kept
    for joint in (False, True):
        cut = probe.causal.knockout(queries="text", keys="visual", joint=joint)
        found[f"knockout {joint}"] = cut.run(corrupted, **metric).tensors["effect"]
    steered = probe.causal.steer(tokens="visual", strength=0.5)
    steered = steered.run(corrupted, **metric, direction=DIRECTION)
    found["steer"] = steered.tensors["effect"]
    written = []
    for strength in (0.0, STRENGTH):
        writer = probe.causal.steer(tokens="visual", strength=strength, joint=True)
        made = writer.generate(corrupted, direction=DIRECTION, max_new_tokens=4)
        written.append(made.tensors["generated_ids"])
    assert not torch.equal(*written)  # else a steering that does nothing writes the same
    found["written"] = written[1]
    vsv = probe.causal.vsv(corrupted, text_only())
    found["vsv"] = torch.stack([vsv.directions[k][0, 0] for k in range(3)])
    for receiver in RECEIVERS:
        path = probe.causal.path(
            senders=[(0, 1), (1, 3)],
            receivers=[receiver],
            sender_tokens="visual",
            receiver_tokens="all",
        )
        effect = path.sweep(corrupted, donor=clean, **metric).tensors["effect"]
        found[f"path {receiver[2]}"] = effect

    sae, binding = coder(probe, 1)
    options = {"layer": 1, "sae": sae, "binding": binding, "tokens": "visual"}
    found["sae features"] = probe.sae.features(**options).run(corrupted).tensors["features"]
    edited = probe.sae.edit(**options, feature_ids=FEATURES, scale=SCALE).run(corrupted, **metric)
    found["sae edit"] = edited.tensors["score_change"]
    rebuilt = probe.sae.reconstruct(**options).run(corrupted, **metric)
    found["sae reconstruct"] = rebuilt.tensors["score_change"]
    return found


def main() -> None:
    for name, case in CASES.items():
        folder = FOLDER / name
        model = case.build()
        model.save_pretrained(folder)
        model = model.double()
        model.set_attn_implementation("eager")
        found = {key: x.detach().contiguous().clone() for key, x in run(case, model).items()}
        for key, tensor in found.items():
            print(name, key, tuple(tensor.shape), flush=True)
        save_file(found, folder / "outputs.safetensors")
        for path in folder.iterdir():
            path.chmod(0o644)


if __name__ == "__main__":
    main()
