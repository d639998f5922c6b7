"""Ways to damage files: bytes as disks and networks do it, JSON as people and attackers do it."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HOSTILE = (
    None,
    True,
    0,
    -1,
    1,
    3,
    10**8,
    10**12,
    2**63,
    -(2**63) - 1,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    "",
    "nan",
    "../../../etc/passwd",
    "/dev/zero",
    "\x1b[2J\x1b[31m",
    "half \ud83d",
    "a\u2028b\0c",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "x" * 100_000,
    [],
    [[]],
    [0],
    [[1, 2], [3]],
    [10**8] * 3,
    {},
    {"a": {"b": {}}},
    {"": None},
)
"""Values in the place of others."""


def damage_bytes(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The name of a damage, and the content with it."""
    n = len(content)
    at, length = rng.randrange(n), rng.choice([1, 2, 8, 64, 512])
    kind = rng.choice(["flip", "flip", "cut", "cut", "zeros", "noise", "insert", "drop", "swap"])
    if kind == "flip":
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            damaged[rng.randrange(n)] ^= 1 << rng.randrange(8)
        return kind, bytes(damaged)
    if kind == "cut":
        return kind, content[: rng.choice([at, max(n - length, 0), 0])]
    middle = {
        "zeros": bytes(length),
        "noise": rng.randbytes(length),
        "insert": rng.randbytes(length),
        "drop": b"",
        "swap": content[at : at + length][::-1],
    }[kind]
    behind = at if kind == "insert" else at + length
    return kind, content[:at] + middle + content[behind:]


def damage_json(found: Any, rng: random.Random) -> Any:
    """The same JSON with one to three entries removed, doubled, renamed or made something else."""
    found = json.loads(json.dumps(found))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = [*_places(found)]
        if not places:
            return copy.deepcopy(rng.choice(HOSTILE))
        holder, key = rng.choice(places)
        change = rng.choice(["remove", "replace", "replace", "replace", "nest", "rename", "scale"])
        value = holder[key]
        if change == "remove":
            del holder[key]
        elif change == "nest":
            holder[key] = [{"x": value}]
        elif change == "rename" and isinstance(holder, dict):
            holder[key + "_"] = holder.pop(key)
        elif change == "scale" and isinstance(value, (int, float)) and value == value:
            holder[key] = value * rng.choice([-1, 0, 2, 7, 1000, 10**6])
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))  # it may be damaged next
    return found


def _places(found: Any) -> list[tuple[Any, Any]]:
    """Every entry, by what holds it and its key."""
    if isinstance(found, dict):
        here = [(found, key) for key in found]
    elif isinstance(found, list):
        here = [(found, i) for i in range(min(len(found), 20))]
    else:
        return []
    return here + [place for holder, key in here for place in _places(holder[key])]
