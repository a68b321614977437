"""`python -m sgp_fast.bench`: the ladder of planners on this machine, as a table; `--out FILE` records it as JSON lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import ladder, memory

SIZES = [(256, 1), (1024, 1), (256, 64), (1024, 64)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sgp_fast.bench", description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=[f"{b}x{w}" for w, b in SIZES], help="problems x width, like 64x256")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="measure memory against the number of problems instead")
    parser.add_argument("--out", type=Path, help="record the rows here")
    options = parser.parse_args()
    if options.memory:
        print(memory.table(memory.run()))
        return
    sizes = [(int(width), int(batch)) for batch, width in (size.split("x") for size in options.sizes)]
    rows = ladder.run(sizes, rounds=options.rounds, progress=lambda text: print(text, flush=True))
    if options.out:
        ladder.write(rows, options.out)
    print(ladder.table(rows))
    print(f"spread (p80 − p20)/p50, median over rungs: {ladder.spread(rows):.2f}")


if __name__ == "__main__":
    main()
