"""All benchmarks of training, or those that are named, one after the other, each in a process of its own.

python -m benchmarks.training [NAME ...] [--repeats 5] [--work /tmp/shardmean-benchmarks]

What each measures and which options it has besides is at the top of its file: `python -m benchmarks.NAME --help`.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import parser

TIMED = ("epoch_time", "exchange", "first_step", "torch_distributor", "spark_round", "growth", "gpu")
NAMES = (*TIMED, "quality")


def main() -> int:
    """Run them; 1 when one failed."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    given = options.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        options.error(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    failed = []
    for name in given.names or NAMES:
        print(f"\n## {name}\n", flush=True)
        repeats = ["--repeats", str(given.repeats)] if name in TIMED else []
        command = [sys.executable, "-m", f"benchmarks.{name}", "--work", str(given.work), *repeats]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
