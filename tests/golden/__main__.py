"""Check recorded shooting cases: `python -m tests.golden FILE… --rtol 1e-9`. A line a file; exits 1 above the tolerance."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import FOLDER, errors, load_case, plan_case


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="recorded cases; those of the tree where none is given")
    parser.add_argument("--rtol", type=float, default=1e-9, help="largest relative error of any key")
    parser.add_argument("--backend", default="eager")
    options = parser.parse_args(arguments)
    files = options.files or sorted(FOLDER.glob("*ss_*.safetensors"))
    failed = 0
    for path in files:
        try:
            case = load_case(path)
            found = errors(case, plan_case(case, options.backend))
        except (OSError, ValueError, KeyError) as error:
            print(f"FAIL {path}: cannot be checked: {error}")
            failed += 1
            continue
        key, worst = max(found.items(), key=lambda item: item[1] if item[1] == item[1] else float("inf"))
        good = worst <= options.rtol  # a NaN is not
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {path.name}: {key} {worst:.1e} (rtol {options.rtol:g})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
