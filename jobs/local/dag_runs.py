"""`airflow dags test` for several DAGs one after the other, in one process: each start of Airflow takes 8 seconds.

Run it as `python -m shardmean.jobs.local.dag_runs DAG...`; the first DAG that fails ends it.
"""

from __future__ import annotations

import sys

MARK = "running DAG "


def main(dag_ids: list[str]) -> None:
    """Run the DAGs, with a line before each."""
    from airflow.cli import cli_parser

    parser = cli_parser.get_parser()
    for dag_id in dag_ids:
        print(f"{MARK}{dag_id}", flush=True)  # noqa: T201 - read by the demo
        arguments = parser.parse_args(["dags", "test", dag_id])
        arguments.func(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
