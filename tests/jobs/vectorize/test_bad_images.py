"""Bad images and bad tables: each is counted and told with its reason, or refused whole with a remedy."""

from __future__ import annotations

import io
import logging
import os
import shutil
import struct
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import shardmean.jobs.vectorize.job
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.dataset.manifest import load_manifest, rejected_uri
from shardmean.model.errors import UserError

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def images(tmp_path, make_images):
    return make_images(tmp_path / "images")


@pytest.fixture
def run(images, tmp_path, vectorize_job):
    """Vectorize the images (up to half may be rejected) and give path -> reason and path -> split."""

    def run(**changes):
        changes = {"max_rejected_fraction": 0.5} | changes
        result = vectorize(vectorize_job(images, tmp_path / "set", **changes))
        table = pq.read_table(
            rejected_uri(str(tmp_path / "set"), load_manifest(str(tmp_path / "set")).rejected)
        ).to_pandas()
        manifest = load_manifest(str(tmp_path / "set"))
        assert manifest.num_rejected == result.num_rejected == len(table)
        assert manifest.num_rejected_by_reason == table.reason.value_counts().to_dict()
        accepted = {}
        for shard in manifest.shards:
            for path in pq.read_table(tmp_path / "set" / "shards" / shard.name)["path"].to_pylist():
                assert path not in accepted
                accepted[path] = shard.split
        return table.set_index("path"), accepted

    return run


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header claims a picture of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG")
    return stream.getvalue()[:700]


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.new("F", (9, 9)).save(stream, "TIFF")
    return stream.getvalue()


BAD = {
    "zero.png": (b"", "empty"),
    "text.png": (b"this is no picture", "unreadable"),
    "cut.jpg": (truncated_jpeg(), "unreadable"),
    "bomb.png": (png_of_size(60_000, 60_000), "too_large"),
    "large.png": (png_of_size(9_000, 9_000), "too_large"),
    "cut.png": (png_of_size(100, 100)[:-30], "unreadable"),
    "floats.tif": (float_tiff(), "wrong_mode"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unreadable"),
}


def test_each_bad_file_is_rejected_with_its_reason_and_the_others_stay(images, run):
    good = {str(p.relative_to(images)) for p in images.rglob("*.png")}
    for name, (content, _) in BAD.items():
        (images / "low" / name).write_bytes(content)
    rejected, accepted = run()
    assert rejected.reason.to_dict() == {f"low/{name}": reason for name, (_, reason) in BAD.items()}
    assert rejected.size_bytes.to_dict() == {f"low/{name}": len(content) for name, (content, _) in BAD.items()}
    assert set(accepted) == good


def test_details_of_rejections_are_for_people(images, run):
    for name, (content, _) in BAD.items():
        (images / "low" / name).write_bytes(content)
    details = run()[0].detail
    assert details["low/zero.png"] == "the file has 0 bytes"
    assert "9000 x 9000 pixels, the limit image.max_pixels is 64000000" in details["low/large.png"]
    # The same file must give the same words in every run, and none of a Python object.
    assert not details.str.contains("0x|BytesIO").any()


def test_small_images(images, run):
    Image.new("L", (3, 12)).save(images / "low" / "thin.png")
    assert run(image={"min_side_px": 4})[0].reason.to_dict() == {"low/thin.png": "too_small"}


def test_a_wrong_suffix_does_no_harm(images, run):
    for suffix, kind in {"png": "JPEG", "jpg": "GIF", "gif": "TIFF", "bmp": "PNG"}.items():
        Image.effect_noise((12, 12), 50).save(images / "low" / f"wrong.{suffix}", kind)
    rejected, accepted = run()
    assert rejected.empty
    assert len(accepted) == 64


def test_sizes_other_than_wanted_with_resize_none(images, run):
    Image.new("L", (13, 12)).save(images / "low" / "wide.png")
    image = {"height_px": 12, "width_px": 12, "resize": "none"}
    assert run(image=image)[0].reason.to_dict() == {"low/wide.png": "wrong_size"}


def test_the_same_bytes_in_two_classes_are_all_rejected(images, run):
    shutil.copy(images / "low" / "004.png", images / "top" / "copy.png")
    shutil.copy(images / "low" / "004.png", images / "low" / "copy.png")
    shutil.copy(images / "low" / "005.png", images / "low" / "innocent copy.png")
    rejected, accepted = run()
    conflicting = ["low/004.png", "low/copy.png", "top/copy.png"]
    assert rejected.reason.to_dict() == dict.fromkeys(conflicting, "conflicting_labels")
    assert len(accepted) == 60 - 1 + 1
    assert "low/innocent copy.png" in accepted


def test_the_same_bytes_twice_in_one_class_share_a_split(images, run):
    for number in range(8):
        shutil.copy(images / "low" / f"{number:03d}.png", images / "low" / f"copy {number}.png")
    rejected, accepted = run()
    assert rejected.empty
    assert len(accepted) == 68
    for number in range(8):
        assert accepted[f"low/copy {number}.png"] == accepted[f"low/{number:03d}.png"]


def test_a_file_that_vanishes_between_scan_and_read(images, run, monkeypatch):
    def scan_and_delete(*given):
        found = scan(*given)
        (images / "low" / "007.png").unlink()
        return found

    monkeypatch.setattr(shardmean.jobs.vectorize.job, "scan", scan_and_delete)
    rejected, accepted = run()
    assert rejected.reason.to_dict() == {"low/007.png": "vanished"}
    assert len(accepted) == 59


def test_a_link_to_nowhere_is_counted(images, run, caplog):
    """Nothing is dropped in silence: it is rejected, or logged as left out."""
    (images / "low" / "link.png").symlink_to(images / "nowhere.png")
    caplog.set_level("INFO")
    rejected, _ = run()
    assert "low/link.png" in rejected.index or "files were left out" in caplog.text


def test_too_many_rejections_publish_nothing(images, tmp_path, run):
    for number in range(3):
        (images / "low" / f"bad {number}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        run(max_rejected_fraction=0.04)
    for part in ("3 of 63 images were rejected", "3 empty", "max_rejected_fraction=0.04", "nothing was published"):
        assert part in str(caught.value)
    assert not (tmp_path / "set" / "manifest.json").exists()
    run(max_rejected_fraction=0.05)


def test_too_many_rejections_leave_the_published_version(images, tmp_path, run):
    run()
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    for number in range(10):
        (images / "low" / f"bad {number}.png").write_bytes(b"")
    with pytest.raises(UserError, match="nothing was published"):
        run(max_rejected_fraction=0)
    assert (tmp_path / "set" / "manifest.json").read_bytes() == before


def test_only_bad_images_publish_nothing(tmp_path, vectorize_job):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="all 2 images were rejected"):
        vectorize(vectorize_job(tmp_path / "images", tmp_path / "set", max_rejected_fraction=1))
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_hidden_folders_are_no_classes(images, run, tmp_path, caplog):
    """Jupyter and macOS leave such folders beside the classes, with copies of images in them."""
    (images / ".ipynb_checkpoints").mkdir()
    Image.new("L", (12, 12)).save(images / ".ipynb_checkpoints" / "x.png")
    (images / "low" / "._000.png").touch()
    with caplog.at_level(logging.INFO):
        _, accepted = run()
    assert len(accepted) == 60
    assert "2 hidden files and folders were left out; rename what belongs to the source" in caplog.messages
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.source.num_hidden == 2
    (report,) = (tmp_path / "set" / "reports").iterdir()
    assert "<dt>left out</dt><dd>2 hidden files and folders</dd>" in report.read_text()


def test_a_file_name_that_is_not_utf8(images, run):
    shutil.copy(images / "low" / "000.png", os.fsencode(images / "low") + b"/\xff.png")
    _, accepted = run()
    assert len(accepted) == 61
    assert accepted["low/\\xff.png"] == accepted["low/000.png"], "named by its codes, read by its bytes"


@pytest.mark.parametrize("names", [("a b", "c  d"), ("\u732b", "\u72ac"), ("caf\xe9", "na\xefve"), ("$_a$", "[b]")])
def test_unusual_class_names(tmp_path, vectorize_job, make_images, names):
    source = make_images(tmp_path / "images", names)
    result = vectorize(vectorize_job(source, tmp_path / "set"))
    assert result.class_names == sorted(names)
    assert load_manifest(str(tmp_path / "set")).class_names == sorted(names)


def test_class_names_with_slashes_by_table(images, tmp_path, vectorize_job):
    paths = sorted(str(p.relative_to(images)) for p in images.rglob("*.png"))
    labels = [f"animals/{path.split('/')[0]}" for path in paths]
    pq.write_table(pa.table({"path": paths, "label": labels}), images / "table.parquet")
    pd.DataFrame({"path": paths, "label": labels}).to_csv(images / "table.csv", index=False)
    digests = set()
    for name in ("table.parquet", "table.csv"):
        result = vectorize(vectorize_job(images / name, tmp_path / name / "set", layout="table"))
        assert result.class_names == ["animals/low", "animals/middle", "animals/top"]
        digests.add(result.digest)
    assert len(digests) == 1


def test_nothing_is_executed_or_followed_out_of_an_image(images, run):
    """PostScript would start Ghostscript, and is refused whatever its name says."""
    (images / "low" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert run()[0].reason.to_dict() == {"low/script.png": "unreadable"}


def test_scan_sees_uppercase_suffixes_and_subfolders(images):
    (images / "low" / "deep").mkdir()
    shutil.copy(images / "low" / "000.png", images / "low" / "deep" / "UPPER.PNG")
    (images / "low" / "notes.txt").write_text("x")
    found = scan(SourceConfig(uri=str(images)))
    assert "low/deep/UPPER.PNG" in {item.path for item in found.items}
    assert found.num_other_files == 1
    assert Path(found.items[0].uri).is_file()
