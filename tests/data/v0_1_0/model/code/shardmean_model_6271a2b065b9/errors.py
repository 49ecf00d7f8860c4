"""The two kinds of failure that a caller must tell apart, and the one that counts images."""

from __future__ import annotations


class UserError(ValueError):
    """The caller's mistake: repeating the command cannot help. Exit code 2, no retry, no traceback."""


class WorldError(RuntimeError):
    """The world's fault (a disk, a server, a lost machine): the same command may succeed later. Exit code 1."""


class ImageRejectedError(Exception):
    """One image that cannot become an example. `reason` is counted, `detail` is for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
