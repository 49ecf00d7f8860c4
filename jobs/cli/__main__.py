"""What spark-submit runs, and `python -m shardmean.jobs.cli`: the command line."""

import sys
from pathlib import Path

# Python puts this file's folder on the path: modules there could be imported a second time, under other names.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

from shardmean.jobs.cli.main import main

sys.exit(main())
