"""All benchmarks of the ETL, or those that are named, one after the other, each in a process of its own.

python -m benchmarks.etl [NAME ...] [--repeats 5] [--work /tmp/shardmean-benchmarks]

What each measures and which options it has besides is at the top of its file: `python -m benchmarks.NAME --help`.
"""

from __future__ import annotations

import sys

from benchmarks.programs import run_named

NAMES = ("etl_photographs", "etl_small", "etl_reading", "etl_memory")

if __name__ == "__main__":
    sys.exit(run_named(__doc__, NAMES, untimed={"etl_memory"}))
