"""What the driver and every worker must share for their arithmetic to agree, checked before a segment starts."""

from __future__ import annotations

import hashlib
import platform
import socket
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from ..errors import UserError


@dataclass(frozen=True)
class Environment:
    """A process's host and its versions: Python's, torch's (no build label), Kornia's, and the hash of our code."""

    host: str
    python: str
    torch: str
    kornia: str
    shardmean: str

    def check_same(self, other: Environment) -> None:
        """Raise UserError that names the two hosts and values where `other`'s versions differ."""
        mine, theirs = asdict(self), asdict(other)
        different = [name for name in mine if name != "host" and mine[name] != theirs[name]]
        if different:
            versions = "; ".join(f"{name} is {mine[name]} here and {theirs[name]} there" for name in different)
            raise UserError(
                f"{self.host} and {other.host} run different versions ({versions}): "
                "install the same on both, with the same constraints.txt"
            )


@lru_cache(maxsize=1)
def this_environment() -> Environment:
    """The running process's. The hash is of `model` and of `jobs`, whose tasks run on workers too."""
    code = hashlib.sha256()
    package = Path(__file__).parents[2]
    # By folder: in a clone these are links, which rglob does not follow.
    for file in sorted(file for folder in ("jobs", "model") for file in (package / folder).rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return Environment(
        host=socket.gethostname(),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=torch.__version__.split("+")[0],
        kornia=version("kornia"),
        shardmean=code.hexdigest()[:12],
    )
