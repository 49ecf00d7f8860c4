"""All exceptions of the product. A caller tells UserError from RetryableError; images have one of their own."""

from __future__ import annotations


class ShardmeanError(Exception):
    """Base of every exception that Shardmean raises on purpose."""


class UserError(ShardmeanError, ValueError):
    """The caller's mistake: repeating the command cannot help. Exit code 2, no retry, no traceback."""


class RetryableError(ShardmeanError, RuntimeError):
    """A disk, a server or a machine failed: the same command may succeed later. Exit code 1."""


class ImageRejectedError(ShardmeanError):
    """One image that cannot become an example. `reason` is counted, `detail` is for the reader."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class LeaseLostError(RetryableError):
    """Another process holds the folder now: this one must stop and write nothing more."""


class DamagedError(RetryableError):
    """A checkpoint that can never be read again; an older one may be readable."""


class DivergedError(RetryableError):
    """This worker's parameters or gradients are not finite."""


class LostWorkerError(RetryableError):
    """A worker's process or machine is gone; `rank` is the worker, where the launcher knows it."""

    def __init__(self, text: str, rank: int | None = None) -> None:
        super().__init__(text)
        self.rank = rank


class LostLauncherError(RetryableError):
    """What runs the workers is gone itself: a segment that is run again would find nobody."""


class FailedWorkerError(RetryableError):
    """A worker reported a failure.

    `repeated_key` is equal where the same worker fails in the same way again; None where a retry may well help.
    """

    def __init__(self, text: str, repeated_key: tuple[str, int, str] | None) -> None:
        super().__init__(text)
        self.repeated_key = repeated_key


class PeerError(ShardmeanError, RuntimeError):
    """Another worker failed, left or stopped this one: its own report names the cause."""


class AbortedError(PeerError):
    """The driver, or another worker that failed, told all workers to stop."""


class PeerDivergedError(PeerError):
    """Another worker's state is not finite, so no average was taken."""


class LostPeersError(PeerError):
    """Other workers left, or sent nothing for too long."""


class MissingPeersError(LostPeersError):
    """Other workers did not come to the rendezvous in time."""
