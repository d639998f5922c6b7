"""Small random models of the real classes of many families, with their real processors.

As in `tiny`: sizes differ from each other, norm weights are random, pictures make odd grids.
`CONFIGURATIONS` names them; `build` gives a copy that is yours to change.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers as tf
from tiny import CHAT_TEMPLATE, _directory, randomise, tiny_llava_next
from tiny_omnifusion import tiny_omnifusion

TEXT = {
    "vocab_size": 173,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 44,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
PATCH = 4

Built = tuple[Any, Any]
CONFIGURATIONS: dict[str, Callable[[], Built]] = {}


def configuration(name: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enter a builder under the name that tests use."""

    def enter(builder: Callable[[], Built]) -> Callable[[], Built]:
        CONFIGURATIONS[name] = cache(builder)
        return builder

    return enter


def build(name: str) -> Built:
    """A random float32 model in eval mode and its processor, built once and copied."""
    return copy.deepcopy(CONFIGURATIONS[name]())


def tokenizer(*tokens: str, padding_side: str = "left", **named: str) -> Any:
    """One token for each character; `named` ones are attributes, as `image_token` is."""
    characters = [c for c in string.printable if c.isprintable() and c != " "]
    vocab = ["<unk>", "<s>", "</s>", "<pad>", "▁", "\n", *characters]
    made = tf.LlamaTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=[],
        pad_token="<pad>",
        add_bos_token=True,
        extra_special_tokens=named,
    )
    if tokens:
        made.add_special_tokens(
            {"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False
        )
    path = _directory() / f"tokenizer {hash((tokens, tuple(named.items())))}"
    made.save_pretrained(path)
    loaded = tf.LlamaTokenizer.from_pretrained(path)
    loaded.padding_side = padding_side
    return loaded


def template(image: str) -> str:
    """A chat template whose images are written so."""
    return CHAT_TEMPLATE.replace("<image>\n", image)


def finish(kind: type, config: Any, processor: Any, seed: int = 0) -> Built:
    """A model of this configuration with random weights."""
    config.architectures = [kind.__name__]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).float().eval()
        randomise(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 3 and "experts" in name:  # [expert, …]: not one matrix
                    parameter.normal_(std=TEXT["hidden_size"] ** -0.5)
    return model, processor


def _clip(**more: Any) -> Any:
    return tf.CLIPVisionConfig(
        **{
            "hidden_size": 20,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "intermediate_size": 36,
            "projection_dim": 14,
            "image_size": 20,
            "patch_size": PATCH,
            **more,
        }
    )


def _siglip(**more: Any) -> Any:
    return tf.SiglipVisionConfig(
        **{
            "hidden_size": 20,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 36,
            "image_size": 24,
            "patch_size": PATCH,
            "vision_use_head": False,
            **more,
        }
    )


# ---- LLaVA ----


for _text in ("mistral", "llama", "granite", "qwen2"):
    CONFIGURATIONS[f"llava-next-{_text}"] = cache(partial(tiny_llava_next, text=_text))
CONFIGURATIONS["omnifusion"] = cache(tiny_omnifusion)


@configuration("llava-1.5")
def _llava() -> Built:
    words = tokenizer(image_token="<image>")
    config = tf.LlavaConfig(
        vision_config=_clip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_index=words.image_token_id,
        image_seq_length=25,
    )
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(
            size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
        ),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return finish(tf.LlavaForConditionalGeneration, config, processor)


@configuration("llava-pixtral")
def _llava_pixtral() -> Built:
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = tf.LlavaConfig(
        vision_config=_pixtral(),
        text_config=tf.MistralConfig(**TEXT),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return finish(tf.LlavaForConditionalGeneration, config, _pixtral_processor(words, merge=1))


@configuration("mistral3")
def _mistral3() -> Built:
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    config = tf.Mistral3Config(
        vision_config=_pixtral(),
        text_config=tf.MistralConfig(**TEXT),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return finish(tf.Mistral3ForConditionalGeneration, config, _pixtral_processor(words, merge=2))


def _pixtral() -> Any:
    return tf.PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=36,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=PATCH,
    )


def _pixtral_processor(words: Any, merge: int) -> Any:
    return tf.PixtralProcessor(
        image_processor=tf.PixtralImageProcessorPil(
            size={"longest_edge": 28 * merge}, patch_size={"height": PATCH, "width": PATCH}
        ),
        tokenizer=words,
        patch_size=PATCH,
        spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )


@configuration("llava-onevision")
def _llava_onevision() -> Built:
    words = tokenizer(image_token="<image>", video_token="<video>")
    grid = [[24 * i, 24 * j] for i in range(1, 4) for j in range(1, 4)]
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_4",
    )
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessorPil(
            size={"height": 24, "width": 24}, image_grid_pinpoints=grid
        ),
        tokenizer=words,
        video_processor=tf.LlavaOnevisionVideoProcessor(size={"height": 24, "width": 24}),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=CHAT_TEMPLATE,
    )
    return finish(tf.LlavaOnevisionForConditionalGeneration, config, processor)


# ---- Qwen and relatives: patches of the image's own shape ----


def _qwen_words() -> Any:
    return tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def _qwen_ids(words: Any) -> dict[str, int]:
    return {
        "image_token_id": words.image_token_id,
        "video_token_id": words.video_token_id,
        "vision_start_token_id": words.vision_start_token_id,
        "vision_end_token_id": words.vision_end_token_id,
    }


def _qwen_processor(kind: type, words: Any, video: type, images: Any = None) -> Any:
    size = {"shortest_edge": 8 * 8 * 2, "longest_edge": 8 * 8 * 30}
    sizes = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    return kind(
        image_processor=(images or tf.Qwen2VLImageProcessorPil)(**sizes),
        tokenizer=words,
        video_processor=video(**sizes),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _qwen_tower(**more: Any) -> dict[str, Any]:
    return {
        "depth": 4,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 36,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": TEXT["hidden_size"],
        **more,
    }


@configuration("qwen2-vl")
def _qwen2_vl() -> Built:
    words = _qwen_words()
    config = tf.Qwen2VLConfig(
        vision_config={
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        text_config={**TEXT, "rope_parameters": MROPE},
        **_qwen_ids(words),
    )
    processor = _qwen_processor(tf.Qwen2VLProcessor, words, tf.Qwen2VLVideoProcessor)
    return finish(tf.Qwen2VLForConditionalGeneration, config, processor)


@configuration("qwen2.5-vl")
def _qwen2_5_vl() -> Built:
    words = _qwen_words()
    config = tf.Qwen2_5_VLConfig(
        # Windows of 2×2 merged patches; one block sees all.
        vision_config=_qwen_tower(window_size=16, fullatt_block_indexes=[1]),
        text_config={**TEXT, "rope_parameters": MROPE},
        **_qwen_ids(words),
    )
    processor = _qwen_processor(tf.Qwen2_5_VLProcessor, words, tf.Qwen2VLVideoProcessor)
    return finish(tf.Qwen2_5_VLForConditionalGeneration, config, processor)


@configuration("qwen3-vl")
def _qwen3_vl() -> Built:
    words = _qwen_words()
    config = tf.Qwen3VLConfig(
        vision_config=_qwen_tower(num_position_embeddings=36, deepstack_visual_indexes=[0, 2]),
        text_config={**TEXT, "head_dim": 12, "rope_parameters": MROPE},
        **_qwen_ids(words),
    )
    processor = _qwen_processor(tf.Qwen3VLProcessor, words, tf.Qwen3VLVideoProcessor)
    return finish(tf.Qwen3VLForConditionalGeneration, config, processor)


@configuration("qwen3-vl-moe")
def _qwen3_vl_moe() -> Built:
    words = _qwen_words()
    config = tf.Qwen3VLMoeConfig(
        vision_config=_qwen_tower(num_position_embeddings=36, deepstack_visual_indexes=[0, 2]),
        text_config={
            **TEXT,
            "head_dim": 12,
            "rope_parameters": MROPE,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
        **_qwen_ids(words),
    )
    processor = _qwen_processor(tf.Qwen3VLProcessor, words, tf.Qwen3VLVideoProcessor)
    return finish(tf.Qwen3VLMoeForConditionalGeneration, config, processor)


@configuration("qwen3.5")
def _qwen3_5() -> Built:
    words = _qwen_words()
    config = tf.Qwen3_5Config(
        vision_config=_qwen_tower(num_position_embeddings=36),
        text_config={
            **TEXT,
            "head_dim": 12,
            "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 10,
        },
        **_qwen_ids(words),
    )
    processor = _qwen_processor(tf.Qwen3VLProcessor, words, tf.Qwen3VLVideoProcessor)
    return finish(tf.Qwen3_5ForConditionalGeneration, config, processor)


@configuration("glm-4v")
def _glm4v() -> Built:
    marks = [
        "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    ]  # fmt: skip
    words = tokenizer(*marks, image_token="<|image|>", video_token="<|video|>")
    begin, end, *video = words.convert_tokens_to_ids(marks)
    config = tf.Glm4vConfig(
        vision_config=_qwen_tower(image_size=24, intermediate_size=28),
        text_config={**TEXT, "rope_parameters": MROPE},
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        image_start_token_id=begin,
        image_end_token_id=end,
        video_start_token_id=video[0],
        video_end_token_id=video[1],
    )
    size = {"shortest_edge": 8 * 8 * 2 * 2, "longest_edge": 8 * 8 * 30 * 2}
    sizes = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = tf.Glm4vProcessor(
        image_processor=tf.Glm4vImageProcessorPil(**sizes),
        tokenizer=words,
        video_processor=tf.Glm4vVideoProcessor(**sizes),
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return finish(tf.Glm4vForConditionalGeneration, config, processor)


@configuration("minimax-m3")
def _minimax_m3() -> Built:
    from transformers.models.minimax_m3_vl.processing_minimax_m3_vl import MiniMaxM3VLProcessor

    kind = MiniMaxM3VLProcessor
    marks = [kind.IMAGE_TOKEN, kind.VIDEO_TOKEN, kind.VISION_START_TOKEN, kind.VISION_END_TOKEN]
    words = tokenizer(*marks, padding_side="right")
    config = tf.MiniMaxM3VLConfig(
        vision_config={
            "hidden_size": 36,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": PATCH,
        },
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "rotary_dim": 8,
            "dense_intermediate_size": 52,
            "shared_intermediate_size": 28,
            "intermediate_size": 24,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            # Keys are kept by blocks: eight keys and the block before are all that a query sees.
            "layer_types": ["full_attention", *["minimax_m3_sparse"] * 3],
            "index_n_heads": 2,
            "index_head_dim": 12,
            "index_block_size": 4,
            "index_topk_blocks": 2,
            "index_local_blocks": 1,
        },
        image_token_index=words.convert_tokens_to_ids(kind.IMAGE_TOKEN),
        video_token_index=words.convert_tokens_to_ids(kind.VIDEO_TOKEN),
        projector_hidden_size=56,
    )
    size = {"shortest_edge": 8 * 8 * 2, "longest_edge": 8 * 8 * 30}
    sizes = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = kind(
        image_processor=tf.MiniMaxM3VLImageProcessor(**sizes),
        tokenizer=words,
        video_processor=tf.MiniMaxM3VLVideoProcessor(**sizes),
        chat_template=template(kind.IMAGE_TOKEN),
    )
    return finish(tf.MiniMaxM3SparseForConditionalGeneration, config, processor)


# ---- Gemma ----


@configuration("gemma3")
def _gemma3() -> Built:
    return _gemma3_of(pan_and_scan=False)


@configuration("gemma3-pan-and-scan")
def _gemma3_cropped() -> Built:
    return _gemma3_of(pan_and_scan=True)


def _gemma3_of(pan_and_scan: bool) -> Built:
    words = tokenizer(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    text = {k: v for k, v in TEXT.items() if k != "num_attention_heads"}
    config = tf.Gemma3Config(
        vision_config=_siglip(),
        text_config={
            **text,
            "num_attention_heads": 4,
            "head_dim": 10,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 10,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 100000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        mm_tokens_per_image=9,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        eos_token_id=2,
    )
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessorPil(size={"height": 24, "width": 24}),
        tokenizer=words,
        image_seq_length=9,
        chat_template=template("<start_of_image>"),
    )
    processor.images_kwargs = {
        "do_convert_rgb": True,
        "do_pan_and_scan": pan_and_scan,
        "pan_and_scan_min_crop_size": 8,
        "pan_and_scan_max_num_crops": 3,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    return finish(tf.Gemma3ForConditionalGeneration, config, processor)


@configuration("paligemma")
def _paligemma() -> Built:
    words = tokenizer(image_token="<image>")
    config = tf.PaliGemmaConfig(
        vision_config=_siglip(projection_dim=48),
        text_config=tf.GemmaConfig(**{**TEXT, "vocab_size": 1307, "head_dim": 10}),
        image_token_index=words.image_token_id,
        projection_dim=48,
        hidden_size=48,
    )
    images = tf.SiglipImageProcessorPil(size={"height": 24, "width": 24})
    images.image_seq_length = 36
    processor = tf.PaliGemmaProcessor(image_processor=images, tokenizer=words)
    return finish(tf.PaliGemmaForConditionalGeneration, config, processor)


@configuration("deepseek-vl")
def _deepseek_vl() -> Built:
    words = tokenizer(image_token="<image_placeholder>")
    config = tf.DeepseekVLConfig(
        vision_config=_siglip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=words.image_token_id,
        tie_word_embeddings=False,
    )
    processor = tf.DeepseekVLProcessor(
        image_processor=tf.DeepseekVLImageProcessorPil(
            size={"height": 24, "width": 24}, min_size=5
        ),
        tokenizer=words,
        num_image_tokens=36,
        chat_template=template("<image_placeholder>"),
    )
    return finish(tf.DeepseekVLForConditionalGeneration, config, processor)


# ---- tiles ----


@configuration("internvl")
def _internvl() -> Built:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = tf.InternVLConfig(
        vision_config={
            "hidden_size": 20,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 36,
            "image_size": [24, 24],
            "patch_size": [PATCH, PATCH],
        },
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=words.context_image_token_id,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessorPil(
            size={"height": 24, "width": 24}, crop_to_patches=True, min_patches=1, max_patches=6
        ),
        tokenizer=words,
        video_processor=tf.InternVLVideoProcessor(size={"height": 24, "width": 24}),
        image_seq_length=9,
        chat_template=template("<IMG_CONTEXT>\n"),
    )
    return finish(tf.InternVLForConditionalGeneration, config, processor)


@configuration("cohere2-vision")
def _cohere2_vision() -> Built:
    words = tokenizer(
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    config = tf.Cohere2VisionConfig(
        vision_config=_siglip(),
        text_config=tf.Cohere2Config(
            **{**TEXT, "num_hidden_layers": 4},
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=52,
        tie_word_embeddings=False,
    )
    images = tf.Cohere2VisionImageProcessor(
        size={"height": 24, "width": 24}, max_patches=6, patch_size=3
    )
    processor = tf.Cohere2VisionProcessor(
        image_processor=images, tokenizer=words, chat_template=template("<|IMG_PATCH|>")
    )
    return finish(tf.Cohere2VisionForConditionalGeneration, config, processor)


def _idefics_marks() -> list[str]:
    tags = [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
    return ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tags]


def _idefics_config(kind: Any, vision: Any, words: Any) -> Any:
    return kind(
        vision_config=vision(
            hidden_size=20,
            intermediate_size=36,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=PATCH,
        ),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=3,
    )


IDEFICS_SIZES = {"size": {"longest_edge": 72}, "max_image_size": {"longest_edge": 24}}


@configuration("idefics3")
def _idefics3() -> Built:
    words = tokenizer(*_idefics_marks(), image_token="<image>")
    config = _idefics_config(tf.Idefics3Config, tf.Idefics3VisionConfig, words)
    processor = tf.Idefics3Processor(
        image_processor=tf.Idefics3ImageProcessorPil(**IDEFICS_SIZES),
        tokenizer=words,
        image_seq_len=9,
        chat_template=template("<image>"),
    )
    return finish(tf.Idefics3ForConditionalGeneration, config, processor)


@configuration("smolvlm")
def _smolvlm() -> Built:
    words = tokenizer(*_idefics_marks(), image_token="<image>", video_token="<video>")
    config = _idefics_config(tf.SmolVLMConfig, tf.SmolVLMVisionConfig, words)
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessorPil(**IDEFICS_SIZES),
        tokenizer=words,
        video_processor=tf.SmolVLMVideoProcessor(**IDEFICS_SIZES),
        image_seq_len=9,
        chat_template=template("<image>"),
    )
    return finish(tf.SmolVLMForConditionalGeneration, config, processor)
