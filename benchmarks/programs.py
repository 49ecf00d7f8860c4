"""Several benchmarks one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.measure import parser

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def run_named(description: str | None, names: Sequence[str], *, untimed: Collection[str] = ()) -> int:
    """Run those of `names` that the command line asks for, or all; 1 when one failed. `untimed` take no repeats."""
    options = parser(description)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    given = options.parse_args()
    unknown = set(given.names) - set(names)
    if unknown:
        options.error(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed = []
    for name in given.names or names:
        print(f"\n## {name}\n", flush=True)
        repeats = [] if name in untimed else ["--repeats", str(given.repeats)]
        command = [sys.executable, "-m", f"benchmarks.{name}", "--work", str(given.work), *repeats]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
