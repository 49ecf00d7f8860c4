"""Reads the bytes of items in order, or says why there are none. Those of a store are fetched in advance."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from shardmean.jobs.vectorize.source import idx
from shardmean.jobs.vectorize.source.listing import MISSING
from shardmean.model.errors import ImageRejectedError, RetryableError
from shardmean.model.images.decoder import check_file_bytes, printable
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shardmean.jobs.vectorize.source.items import Item
    from shardmean.model.config.image import ImageConfig

NUM_READ_AHEAD = 16
READ_AHEAD_BYTES = 64 * 2**20
# What pyarrow's errors hold where S3 refuses one object, and where S3 itself is out of reach.
ACCESS_DENIED, OUT_OF_REACH = "ACCESS_DENIED", "NETWORK_CONNECTION"


def read_ahead(items: Sequence[Item], config: ImageConfig) -> Iterator[bytes | Exception]:
    """The items' bytes in order, or for each the reason why there are none. Remote files are fetched in advance."""
    is_remote = any(filesystem.local_path(item.uri) is None for item in (*items[:1], *items[-1:]))
    return _read_remote(items, config) if is_remote else (_content(item, config) for item in items)


def _read_remote(items: Iterable[Item], config: ImageConfig) -> Iterator[bytes | Exception]:
    """Many small files or few large ones at a time: those in flight have READ_AHEAD_BYTES, or are one."""
    waiting: deque[tuple[int, Future[bytes | Exception]]] = deque()
    with ThreadPoolExecutor(NUM_READ_AHEAD) as pool:
        num_bytes = 0
        for item in items:
            size_bytes = min(item.size_bytes, config.max_file_bytes)  # a larger one is not read
            while waiting and (len(waiting) >= 2 * NUM_READ_AHEAD or num_bytes + size_bytes > READ_AHEAD_BYTES):
                first_bytes, first = waiting.popleft()
                yield first.result()
                num_bytes -= first_bytes
                del first  # it must not be in memory while the next is awaited
            waiting.append((size_bytes, pool.submit(_content, item, config)))
            num_bytes += size_bytes
        while waiting:
            yield waiting.popleft()[1].result()


def _content(item: Item, config: ImageConfig) -> bytes | Exception:
    try:
        check_file_bytes(item.size_bytes, config)
        return read_item(item)
    except ImageRejectedError as error:
        return error
    except FileNotFoundError:
        return ImageRejectedError("vanished", "the file was there when the source was listed")
    except RetryableError as error:
        return classify_read_error(error)


def classify_read_error(error: RetryableError) -> Exception:
    """An image that cannot be read is rejected, and the next run tries again; a store out of reach stops this run."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or OUT_OF_REACH in str(cause):
        return error
    if isinstance(cause, PermissionError) or ACCESS_DENIED in str(cause):
        return ImageRejectedError("no_permission", "the file may not be read")
    return ImageRejectedError("not_readable", printable(f"{cause.strerror or cause}; the next run tries again"))


def read_item(item: Item) -> bytes:
    """The image file's bytes of an item.

    Raises FileNotFoundError when it is gone, ImageRejectedError when it was not there when the source was listed or is
    not of the size that it was, and RetryableError when it can't be read.
    """
    if item.reason is not None:
        what = "no file" if item.reason == MISSING else "a folder, pipe, socket or device, not a file,"
        raise ImageRejectedError(item.reason, printable(f"{what} at {item.uri}"))
    if item.row is not None:
        images = idx.open_images(item.uri, item.modified_ns)
        num_rows, height, width = images.shape
        pixels = images.read(item.row) if images.item_bytes == item.size_bytes else b""
        if item.row >= num_rows or len(pixels) != item.size_bytes:
            detail = f"row {item.row} of {item.size_bytes} bytes when the source was listed, "
            detail += f"{num_rows} rows of {height * width} when it was read; the next run reads it"
            raise ImageRejectedError("changed", detail)
        return b"".join((b"P5\n%d %d\n255\n" % (width, height), pixels))
    # One byte more shows that a file has grown, and a file that never ends does no harm.
    content = filesystem.read_bytes(item.uri, max_bytes=item.size_bytes + 1)
    if len(content) != item.size_bytes:
        size = f"more than {item.size_bytes}" if len(content) > item.size_bytes else str(len(content))
        detail = f"{item.size_bytes} bytes when the source was listed, {size} when it was read; the next run reads it"
        raise ImageRejectedError("changed", detail)
    return content
