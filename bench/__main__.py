"""`python -m bench COMMAND`, in a checkout: the same as `sgp-fast bench COMMAND`."""

from __future__ import annotations

import sys

from sgp_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
