"""Score of a mutation run, by module, and the survivors that nobody has spoken for.

Run where mutmut ran (`make mutants`). Survivors are held against `survivors.toml` beside this file:
each entry says in which module a line becomes another, and why no test tells the two apart.
Exits with 1 if fewer than `BAR` are killed, or if a survivor is in no entry.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

BAR = 0.9
# A mutant that runs for ever, or takes the interpreter down, has been noticed.
KILLED = ("killed", "timeout", "segfault")


def changed_lines(mutant: str, path: Path) -> tuple[str, str]:
    """The lines of a function that a mutant takes away, and those that it puts in their place."""
    lines = [line for line in get_diff_for_mutant(mutant, path=path).splitlines()[2:] if line]
    took, put = (
        " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in ("-", "+")
    )
    return took, put


def main() -> int:
    listed = {
        (entry["module"], was, becomes): entry["reason"]
        for entry in tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())["group"]
        for was, becomes in entry["changes"]
    }
    every = killed_in_all = 0
    unspoken: list[str] = []
    print(f"{'module':<36}{'mutants':>8}{'killed':>8}{'score':>8}{'listed':>8}")
    for path in map(Path, config().only_mutate):
        data = SourceFileMutationData(path=path)
        data.load()
        status = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        tried = {name: what for name, what in status.items() if what != "not checked"}
        left = {name: what for name, what in tried.items() if what not in KILLED}
        known = 0
        for name, what in left.items():
            change = changed_lines(name, path)
            if (str(path), *change) in listed:
                known += 1
            else:
                unspoken.append(f"{name} ({what})\n    - {change[0]}\n    + {change[1]}")
        killed = len(tried) - len(left)
        score = killed / max(len(tried), 1)
        note = "" if len(tried) == len(status) else f"  of {len(status)}: the rest was not tried"
        print(f"{path!s:<36}{len(tried):>8}{killed:>8}{score:>8.1%}{known:>8}{note}")
        every, killed_in_all = every + len(tried), killed_in_all + killed
    print(f"{'in all':<36}{every:>8}{killed_in_all:>8}{killed_in_all / max(every, 1):>8.1%}")
    if unspoken:
        print("\nSurvivors that are in no entry of survivors.toml:", *unspoken, sep="\n")
    return int(bool(unspoken) or killed_in_all < BAR * every)


if __name__ == "__main__":
    sys.exit(main())
