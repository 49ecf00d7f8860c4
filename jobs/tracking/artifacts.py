"""Small files of a run: written whole, read whole, None where there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlflow


def write_artifact(client: mlflow.MlflowClient, run_id: str, path: str, data: bytes) -> None:
    """Write one file of a run, such as evaluation/rows.json."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PurePosixPath(path).name
        file.write_bytes(data)
        client.log_artifact(run_id, str(file), str(PurePosixPath(path).parent))


def read_artifact(client: mlflow.MlflowClient, run_id: str, path: str) -> bytes | None:
    """One file of a run; None where there is none. Raises MlflowException and OSError."""
    folder = str(PurePosixPath(path).parent)
    if path not in {file.path for file in client.list_artifacts(run_id, folder)}:
        return None
    with tempfile.TemporaryDirectory() as target:
        return Path(client.download_artifacts(run_id, path, target)).read_bytes()
