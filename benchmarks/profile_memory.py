"""Peak memory of profiles of 100 and of 9,673 samples: it must not grow with the data.

    python benchmarks/profile_memory.py

Each profile runs in a process of its own, since peak memory is a property of a process: one of 100
samples with its states in memory, then all of the data with states in memory and in a run
directory. Prints the peaks in MiB, the times and the ratios of the peaks (goal: at most 1.05).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 1.05


def measure(model: str, data: str, samples: int, run_dir: Path | None) -> dict[str, float]:
    """Profile in this process; its peak resident memory in MiB, and seconds."""
    import mm_lens

    bridge = mm_lens.load(model)
    # What loading takes is in the peak of both: reported, so that the ratio can be judged.
    loaded = peak()
    chosen = mm_lens.datasets.load(data, limit=samples)
    start = time.perf_counter()
    mm_lens.profile(bridge, chosen, streams=["residual"], run_dir=run_dir, progress=False)
    return {"loaded": loaded, "peak": peak(), "seconds": time.perf_counter() - start}


def peak() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of profiles of two sizes.")
    parser.add_argument("--model", default="demo/llava-next")
    parser.add_argument("--data", default="easy-vqa")
    parser.add_argument("--samples", type=int, nargs=2, default=[100, 9673])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.model, args.data, args.child, args.run_dir)))
        return
    few, many = args.samples
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for samples, files in ((few, False), (many, False), (many, True)):
            own = [sys.executable, __file__, "--model", args.model, "--data", args.data]
            own += ["--child", str(samples)]
            own += ["--run-dir", f"{scratch}/run"] if files else []
            child = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(child.stdout.splitlines()[-1])
            peaks.append(found["peak"])
            print(
                f"{samples:6,} samples, states in {'files ' if files else 'memory'}: peak "
                f"{found['peak']:7,.0f} MiB ({found['loaded']:,.0f} MiB with the model loaded), "
                f"{found['seconds']:.1f} s",
                flush=True,
            )
    for name, value in zip(("memory", "files "), peaks[1:], strict=True):
        print(f"states in {name}: ratio {value / peaks[0]:.3f} (goal: at most {GOAL:.2f})")


if __name__ == "__main__":
    main()
