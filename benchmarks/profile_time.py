"""What a profile costs over the bare forward pass: ratios from one interleaved run.

    python benchmarks/profile_time.py             # the demo model on easy-VQA
    python benchmarks/profile_time.py --samples 160 --rounds 3 --states    # three minutes
    python benchmarks/profile_time.py --real      # shapes of LLaVA-NeXT-Mistral-7B, random weights

The peer is the Hugging Face model itself on inputs prepared beforehand. A profile also reads and
prepares its inputs (beside the forward pass, in a thread), finds the tokens to keep and writes
their states; so the peer with its processor, one after the other, is printed too. Rounds run every
variant once, in shuffled order; a ratio is the median over rounds of the quotient within a round.
On a CPU, ratios of processor time stand beside those of wall time: they count what the thread does,
and hold on a machine that is busy with other things.
The metrics come after the states and do not grow with the data: their time is printed by itself.

`--real` measures a GPU: bfloat16, images of the sizes of photographs in up to five tiles;
`--layers` cuts both towers and leaves out the metrics, for a trial on a CPU; `--states` leaves out
the metrics alone.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

import mm_lens
from mm_lens import demo
from mm_lens.data import datasets
from mm_lens.data.datasets import Sample
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.run_directory import open_run
from mm_lens.profiling.states import SamplingPlan, collect

GOAL_CPU, GOAL_GPU = 1.20, 1.10
PHOTOS = ((640, 480), (480, 640), (640, 427), (500, 375), (1024, 683), (768, 1024))
GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def demo_pair(device: str) -> tuple[Any, Any]:
    """The demo model twice: as Hugging Face loads it, and as a bridge."""
    path = demo.path("demo/llava-next")
    native = AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    )
    return native.eval().to(device), mm_lens.load("demo/llava-next", check=False, device=device)


def real_pair(device: str, layers: int | None) -> tuple[Any, Any]:
    """The shapes of llava-v1.6-mistral-7b in bfloat16 with random weights, twice.

    The demo's tokenizer stands in for Mistral's; a text has about as many tokens.
    """
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 336},
            crop_size={"height": 336, "width": 336},
            image_grid_pinpoints=GRID,
        ),
        tokenizer=mm_lens.load("demo/llava-next", check=False).processor.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers or 24,
            num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768,
        ),
        text_config=MistralConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers or 32,
            num_attention_heads=32, num_key_value_heads=8, vocab_size=32064,
            max_position_embeddings=32768, rope_theta=1e6, sliding_window=None,
        ),
        image_grid_pinpoints=GRID,
        image_token_index=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
        vision_feature_layer=-2 if (layers or 24) > 1 else -1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        native = LlavaNextForConditionalGeneration(config).eval()
        torch.set_default_dtype(before)
    native.set_attn_implementation("sdpa")
    bridge = mm_lens.load(hf_model=copy.deepcopy(native), processor=processor, check=False)
    return native, bridge


def photographs(n: int) -> list[Sample]:
    """Images of the sizes of photographs, no two alike, and questions about them."""
    found = datasets.load("easy-vqa", limit=n)
    return [
        Sample(s.id, s.text, s.image.resize(PHOTOS[i % len(PHOTOS)]), s.answer)
        for i, s in enumerate(found)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--states", action="store_true")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.real and device == "cpu" and given.layers is None:
        print("--real: no GPU here. Skipped; --layers 1 tries it on the CPU.")
        return
    native, model = real_pair(device, given.layers) if given.real else demo_pair(device)
    size = given.batch_size or (8 if given.real else 16)
    count = given.samples or (128 if given.real else 320)
    data: Any = photographs(count) if given.real else datasets.load("easy-vqa", limit=count)
    batches = [data[i : i + size] for i in range(0, count, size)]

    def prepare(batch: Any) -> Any:
        return model.prepare([s.text for s in batch], [s.image for s in batch])

    def forward(inputs: Any) -> None:
        native(**inputs.native, logits_to_keep=1)

    def states(streams: tuple[str, ...], run: Any = None) -> Any:
        plan = SamplingPlan(
            n_samples=count, streams=streams, modalities=("visual", "text", "all"),
            k=max(12 * model.cfg.d_model, 2048), batch_size=size, seed=0, on_error="raise",
        )  # fmt: skip
        return collect(model, data, plan, progress=False, run=run)

    def in_files() -> None:
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_run(Path(scratch) / "run", {}, Processes()) as run,
        ):
            states(("residual",), run)

    prepared = [prepare(batch) for batch in batches]
    variants: dict[str, Callable[[], Any]] = {
        "HF forward": lambda: [forward(inputs) for inputs in prepared],
        "HF processor and forward": lambda: [forward(prepare(batch)) for batch in batches],
        "states of one stream": lambda: states(("residual",)),
        "states of one stream, in files": in_files,
        "states of both streams": lambda: states(("residual", "main")),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    work: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for round_ in range(given.rounds + 1):
            order = list(variants)
            random.Random(round_).shuffle(order)
            for name in order:
                start, busy = time.perf_counter(), time.process_time()
                variants[name]()
                if device == "cuda":
                    torch.cuda.synchronize()
                if round_:  # warmed up
                    times[name].append(time.perf_counter() - start)
                    work[name].append(time.process_time() - busy)
    seconds = 0.0
    if given.layers is None and not given.states:
        seconds = mm_lens.profile(model, data, progress=False).provenance["seconds"]["metrics"]

    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    tokens = sum(int(inputs.attention_mask.sum()) for inputs in prepared)
    print(
        f"{count} samples of {tokens / count:,.0f} tokens in batches of {size}, {model.cfg.dtype}, "
        f"{machine or platform.machine()}, {given.threads} thread(s)"
    )
    for name, taken in times.items():
        print(f"  {name:34s} {1000 * statistics.median(taken) / count:8.1f} ms/sample")
    if seconds:
        print(f"  {'metrics, both presets and streams':34s} {seconds:8.1f} s in all")

    def ratio(a: str, b: str, scale: float = 1) -> str:
        found = [
            statistics.median(x / y / scale for x, y in zip(of[a], of[b], strict=True))
            for of in (times, work)
        ]
        return f"{found[0]:6.3f}" + (f"  processor {found[1]:6.3f}" if device == "cpu" else "")

    goal = GOAL_GPU if device == "cuda" else GOAL_CPU
    one, both, bare = "states of one stream", "states of both streams", "HF forward"
    print(f"one stream / HF forward               {ratio(one, bare)}  (goal ≤ {goal})")
    print(f"one stream / HF processor and forward {ratio(one, 'HF processor and forward')}")
    print(f"in files / in memory                  {ratio(one + ', in files', one)}")
    print(f"both streams / two HF forwards        {ratio(both, bare, 2)}")


if __name__ == "__main__":
    main()
