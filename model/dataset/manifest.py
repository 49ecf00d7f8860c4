"""The manifest: what a DataSet holds, written last, and the digest that is the DataSet's identity."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..config.base import Settings
from ..config.image import ImageConfig, SplitConfig
from ..errors import RetryableError, UserError
from ..storage import conditional, filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SCHEMA_VERSION = 3
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CURRENT, STAND_IN = "manifest.json", "manifest.new.json"
ANY = "any"
SHARD_NAME = r"^[a-z]+-[0-9a-f]{20}\.parquet$"
FileName = Annotated[str, Field(pattern=r"^[0-9a-f]{20}\.parquet$")]


class Shard(Settings):
    """One Parquet file of examples of one split. Its name holds the hash of its content.

    `sums` and `squares` are those of all values and of their squares, per channel: exact, so that they merge.
    """

    name: Annotated[str, Field(pattern=SHARD_NAME)]
    split: Split
    num_examples: Annotated[int, Field(ge=1)]
    num_bytes: Annotated[int, Field(ge=1)]
    blake3: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    footer_blake3: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Hash of the file's footer, which holds a checksum of each row; version 0.1.0 wrote neither."""
    num_per_class: dict[int, int]
    """Examples by label, of the classes that are in it."""
    sums: list[int] = []
    squares: list[int] = []


class Source(Settings):
    """Where the examples came from.

    `fingerprint` covers every file's path, size and modification time; `settings` are those of the job's source that
    decide what an example is; `num_left_out` images were left out to balance the classes, `num_hidden` files and
    folders because they are hidden.
    """

    uri: str
    layout: str
    fingerprint: str
    num_files: int
    num_left_out: int = 0
    num_hidden: int = 0
    settings: dict[str, Any] = {}


class Manifest(Settings):
    """A whole DataSet. `mean` and `std` are per channel, of the training split's values divided by 255.

    `num_first_frames` examples are the first page or frame of a file with several. `index` and `rejected` name two
    tables: all images of the source, and those that became no example.
    """

    schema_version: Literal[3] = 3
    digest: str = ""
    image: ImageConfig
    split: SplitConfig
    class_names: list[str]
    mean: list[float]
    std: list[float]
    shards: list[Shard]
    source: Source
    num_rejected: int = 0
    num_rejected_by_reason: dict[str, int] = {}
    num_first_frames: int = 0
    extra_columns: list[str] = []
    index: FileName | None = None
    rejected: FileName | None = None

    def shards_of(self, split: str) -> list[Shard]:
        """The shards of one split, in the manifest's order."""
        return [shard for shard in self.shards if shard.split == split]

    def num_examples(self, split: str) -> int:
        """Examples in one split."""
        return sum(shard.num_examples for shard in self.shards_of(split))

    def num_per_class(self, split: str) -> list[int]:
        """Examples of each class in one split, in the order of `class_names`."""
        counts = [0] * len(self.class_names)
        for shard in self.shards_of(split):
            for label, num_examples in shard.num_per_class.items():
                counts[label] += num_examples
        return counts

    def split_digest(self, split: str) -> str:
        """32 hex digits that are equal exactly when a split holds the same examples, pixels and classes."""
        parts = [*sorted(shard.blake3 for shard in self.shards_of(split)), *self.class_names]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def sealed(self) -> Manifest:
        """This manifest with its digest filled in."""
        return self.model_copy(update={"digest": _digest_of(self.model_dump(mode="json"))})


def mean_and_std(shards: Sequence[Shard], image: ImageConfig) -> tuple[list[float], list[float]]:
    """Mean and (population) standard deviation per channel, of all values in some shards divided by 255."""
    num_values = max(1, sum(shard.num_examples for shard in shards) * image.height_px * image.width_px)
    sums = [sum(shard.sums[channel] for shard in shards) for channel in range(image.channels)]
    squares = [sum(shard.squares[channel] for shard in shards) for channel in range(image.channels)]
    # Whole numbers up to the last division: the variance is exact where floats would cancel.
    variances = [(num_values * q - s * s) / num_values**2 for s, q in zip(sums, squares, strict=True)]
    return [s / num_values / 255 for s in sums], [float(variance**0.5) / 255 for variance in variances]


def manifest_uri(dataset_uri: str, digest: str | None = None) -> str:
    """URI of the current manifest, or of that of one version."""
    return filesystem.join(dataset_uri, *(("versions", f"{digest}.json") if digest else (CURRENT,)))


def shards_uri(dataset_uri: str) -> str:
    """URI of the folder of shards."""
    return filesystem.join(dataset_uri, "shards")


def shard_uri(dataset_uri: str, name: str) -> str:
    """URI of a shard."""
    return filesystem.join(shards_uri(dataset_uri), name)


def index_uri(dataset_uri: str, name: str) -> str:
    """URI of a table of all images of the source; a manifest's `index` is its name."""
    return filesystem.join(dataset_uri, "index", name)


def rejected_uri(dataset_uri: str, name: str) -> str:
    """URI of a table of rejected images (path, reason, detail, size_bytes); a manifest's `rejected` is its name."""
    return filesystem.join(dataset_uri, "rejected", name)


def report_uri(dataset_uri: str, digest: str) -> str:
    """URI of a version's report for people, an HTML page."""
    return filesystem.join(dataset_uri, "reports", f"{digest}.html")


def current_version(dataset_uri: str) -> str | None:
    """The version of the file of the current manifest, for `publish`; None where there is none. Raises RetryableError.

    Ask for it before that manifest is loaded.
    """
    return conditional.version_of(manifest_uri(dataset_uri))


def publish(
    manifest: Manifest,
    dataset_uri: str,
    *,
    replaces: str | None = ANY,
    before_write: Callable[[], None] = lambda: None,
) -> None:
    """Commit a sealed manifest: its version first, then the current one, which readers follow.

    `before_write` is called before each write and may raise. With `replaces`, a `current_version`, RetryableError is
    raised where the current manifest is another by now, which then stays.
    """
    text = write_version(manifest, dataset_uri, before_write)
    uri = manifest_uri(dataset_uri)
    if not filesystem.replaces_at_once(uri):
        before_write()
        filesystem.write_bytes(_stand_in_uri(dataset_uri), text)
    before_write()
    if not conditional.write_if_unchanged(uri, text, current_version(dataset_uri) if replaces == ANY else replaces):
        raise RetryableError(
            f"{uri}: another process has published, or is publishing, since this one began: its version stays, and "
            "this one's is not published; repeat the command"
        )


def write_version(manifest: Manifest, dataset_uri: str, before_write: Callable[[], None]) -> bytes:
    """Write a sealed manifest as a version, which no reader takes for the current one; gives what was written."""
    assert manifest.digest, "only a sealed manifest is written"
    text = manifest.model_dump_json().encode()
    before_write()
    filesystem.write_bytes(manifest_uri(dataset_uri, manifest.digest), text)
    return text


def _stand_in_uri(dataset_uri: str) -> str:
    """A copy of the current manifest, written before it where the store deletes a file before it replaces it (hdfs)."""
    return filesystem.join(dataset_uri, STAND_IN)


def load_manifest(dataset_uri: str, digest: str | None = None) -> Manifest:
    """Read and check a DataSet's manifest: the current one, or that of the version `digest`.

    Raises UserError when none was published there or it is of another schema, RetryableError when it is damaged.
    """
    if digest is None:
        manifest = load_current(dataset_uri)
        if manifest is None:
            raise UserError(
                f"{manifest_uri(dataset_uri)}: not found, so {dataset_uri} is no published DataSet (a run that was cut "
                "off publishes nothing); run `shardmean vectorize` with this dataset_uri, or correct it"
            )
        return manifest
    uri = manifest_uri(dataset_uri, digest)
    try:
        manifest = _parse(filesystem.read_bytes(uri), uri)
    except FileNotFoundError:
        raise UserError(
            f"{uri}: not found, so {dataset_uri} has no version {digest}, or has it no more (keep_versions); "
            "give another version, or for a training with a run_key another key"
        ) from None
    if manifest.digest != digest:
        raise RetryableError(f"{uri}: holds version {manifest.digest}, not {digest}; restore it, or use another")
    return manifest


def load_current(dataset_uri: str) -> Manifest | None:
    """The current manifest, or None where none was published. Raises as `load_manifest`."""
    uri = manifest_uri(dataset_uri)
    # Once more at the end: it may have been replaced after the first look, and its copy before the second.
    for each in (uri, _stand_in_uri(dataset_uri), uri):
        with suppress(FileNotFoundError):
            return _parse(filesystem.read_bytes(each), each)
    return None


def _parse(text: bytes, uri: str) -> Manifest:
    try:
        document = json.loads(text)
        version = document.get("schema_version")
        manifest = Manifest.model_validate(document) if version == SCHEMA_VERSION else None
    except (ValueError, AttributeError) as error:
        raise RetryableError(
            f"{uri}: not a manifest: {str(error).splitlines()[0]}; restore it, or run vectorize with replace=true"
        ) from error
    if manifest is None:
        raise UserError(
            f"{uri}: schema version {version}, but this Shardmean reads {SCHEMA_VERSION}; use a matching version"
        )
    # Of the text, not of what it was read as: an older version's names of values give its digest.
    if manifest.digest != (found := _digest_of(document)):
        raise RetryableError(
            f"{uri}: the manifest's digest is {manifest.digest} but its content gives {found}: "
            "it was changed after it was published; restore it, or run `shardmean vectorize` with replace=true"
        )
    return manifest


def _digest_of(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key not in ("digest", "source", "index", "rejected")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
