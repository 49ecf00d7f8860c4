"""Config files of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "job.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write
