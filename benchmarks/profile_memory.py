"""Peak memory of a profile of 100 and of 500 samples: it must not grow with the data.

    python benchmarks/profile_memory.py

Each profile runs in a process of its own, since peak memory is a property of a process. Prints the
peaks in MiB, the times and the ratio of the peaks (goal: at most 1.10).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

GOAL = 1.10


def measure(model: str, data: str, samples: int) -> dict[str, float]:
    """Profile in this process; its peak resident memory in MiB, and seconds."""
    import mm_lens

    bridge = mm_lens.load(model)
    # What loading takes is in the peak of both: reported, so that the ratio can be judged.
    loaded = peak()
    chosen = mm_lens.datasets.load(data, limit=samples)
    start = time.perf_counter()
    mm_lens.profile(bridge, chosen, progress=False)
    return {"loaded": loaded, "peak": peak(), "seconds": time.perf_counter() - start}


def peak() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of profiles of two sizes.")
    parser.add_argument("--model", default="demo/llava-next")
    parser.add_argument("--data", default="easy-vqa")
    parser.add_argument("--samples", type=int, nargs=2, default=[100, 500])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.model, args.data, args.child)))
        return
    peaks = []
    for samples in args.samples:
        own = [sys.executable, __file__, "--model", args.model, "--data", args.data]
        child = subprocess.run(
            [*own, "--child", str(samples)], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(child.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{samples:6,} samples: peak {found['peak']:7,.0f} MiB "
            f"({found['loaded']:,.0f} MiB with the model loaded), {found['seconds']:.1f} s"
        )
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f} (goal: at most {GOAL:.2f})")


if __name__ == "__main__":
    main()
