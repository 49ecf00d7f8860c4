"""The DataSet's report: what it counts is right, what it shows is real, and no name or number of classes breaks it."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.report.html import make_report
from shardmean.jobs.vectorize.report.statistics import DatasetStatistics
from shardmean.jobs.vectorize.report.thumbnails import MAX_SHARDS, draw
from shardmean.model.config.image import SplitConfig
from shardmean.model.dataset.manifest import shard_uri
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem
from tests.jobs.indexed import Made, publish_indexed

MAX_PAGE_BYTES = 3_000_000
VOID = {"meta", "img", "line", "rect", "br"}
HOSTILE = [
    'a/<script>alert("x")</script>.png', 'a/" onerror="alert(1)', "a/line\nbreak\r\x1b[31m.png",
    "a/100%20%s{{ 7*7 }}.png", "a/not utf-8 \\xff\\xfe.png",
    "a/right \u202e to left.png", "a/" + "long" * 100 + ".png", "a/ünï/写真.png",
]  # fmt: skip


def pixels(seed: int, shape=(1, 8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Page(HTMLParser):
    """A page taken apart: its text, its pictures by title; it asserts that every tag is closed in its turn."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.words, self.pictures, self.tags, self._open = [], [], Counter(), []
        self.feed(data.decode())
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        if tag == "img":
            attributes = dict(attributes)
            data = base64.b64decode(attributes["src"].split(",", 1)[1])
            self.pictures.append((attributes["title"], Image.open(io.BytesIO(data))))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture(scope="module")
def pile() -> list[Made]:
    """Two classes in three splits, two copies, a conflict of two classes, 25 broken files and one too large."""
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    items = [
        Made(f"{name}/{n}.png", name, pixels(100 * place + n), splits[n], size_bytes=500 + n, size_px=(20 + 3 * n, 30))
        for place, name in enumerate(["cat", "dog"])
        for n in range(10 if name == "cat" else 7)
    ]
    items += [Made(f"cat/copy {n}.png", "cat", pixels(0), size_px=(20, 30)) for n in range(2)]
    items += [Made(f"dog/broken {n:02d}.png", "dog", reason="unreadable", detail="cut short", size_px=None)
              for n in range(25)]  # fmt: skip
    items += [Made(f"{name}/both.png", name, reason="conflicting_labels", content=b"x") for name in ("cat", "dog")]
    return [*items, Made("dog/huge.png", "dog", reason="too_large", detail="9 x 9 pixels")]


@pytest.fixture(scope="module")
def published(pile, tmp_path_factory):
    return publish_indexed(tmp_path_factory.mktemp("pile"), pile, shard_bytes=300)


@pytest.fixture(scope="module")
def page(published) -> bytes:
    return make_report(*published)


def test_the_key_figures_and_the_counts_of_classes(page, published):
    text = Page(page).text
    dataset, _ = published
    assert dataset.manifest.digest in text
    for figure in (
        "19 examples",
        "2 classes",
        "28 rejected, 59.6 %",
        "2 exact copies",
        "newest image 2025-11-24 16:00",
    ):
        assert figure in text
    assert "train 14 73.7 % validation 3 15.8 % test 2 10.5 %" in text
    assert "cat 12 8 2 2 1 dog 7 6 1 0 27" in text, "all, train, validation, test, rejected"
    assert "test has no example of 1 class: dog" in text


def test_rejected_images_by_reason_with_the_first_twenty(page):
    text = Page(page).text
    assert re.search(
        r"unreadable 25 images dog/broken 00.png cut short .* dog/broken 19.png cut short and 5 more", text
    )
    assert "broken 20" not in text
    assert "too_large 1 image dog/huge.png 9 x 9 pixels" in text


def test_copies_and_conflicts_name_their_files(page):
    text = Page(page).text
    assert "1 image of which there is more than one file, byte for byte: 2 of the 19 examples add nothing new" in text
    assert "3 x cat train cat/0.png cat/copy 0.png cat/copy 1.png" in text
    assert "Conflicting labels" in text
    assert "cat / dog 1 image in 2 files cat/both.png dog/both.png" in text


def test_the_same_dataset_gives_the_same_bytes(page, published):
    dataset, index = published
    assert make_report(Dataset(dataset.uri, dataset.manifest), index) == page


def test_a_folder_of_any_name(tmp_path):
    data = make_report(*publish_indexed(tmp_path / "a?b 100%25 <i>", [Made("a/0.png", "a", pixels(0))]))
    assert "<h1>a?b 100%25 &lt;i&gt;</h1>" in data.decode()


def test_a_dataset_in_a_bucket(new_bucket, tmp_path):
    made, index = publish_indexed(tmp_path, [Made("a/0.png", "a", pixels(0))])
    uri = filesystem.join(new_bucket(), "folder of pets")
    for shard in made.manifest.shards:
        filesystem.write_bytes(shard_uri(uri, shard.name), filesystem.read_bytes(shard_uri(made.uri, shard.name)))
    assert "<h1>folder of pets</h1>" in make_report(Dataset(uri, made.manifest), index).decode()


def test_the_page_loads_nothing(page):
    text = page.decode()
    assert re.findall(r'(?:src|href)="(?!data:image/)', text) == []
    assert re.findall(r"url\(|@import|<script|<link|<iframe", text) == []
    assert "default-src 'none'" in text


def test_pictures_are_the_examples_and_their_exact_mean(page, published, pile):
    found = Page(page).pictures
    train = np.stack([item.pixels_CHW[0] for item in pile if item.pixels_CHW is not None and item.split == "train"])
    assert found[0][0] == "mean of 14 examples"
    np.testing.assert_array_equal(np.asarray(found[0][1]), (2 * train.sum(0, dtype=int) + 14) // 28)
    by_path = {item.path: item for item in pile}
    examples = [(title, picture) for title, picture in found if not title.startswith("mean of")]
    assert len(examples) == 8 + 7
    for path, picture in examples:
        np.testing.assert_array_equal(np.asarray(picture), by_path[path].pixels_CHW[0])
    cats = sorted((item for item in pile if item.class_name == "cat" and item.reason is None),
                  key=lambda item: item.content_hash)  # fmt: skip
    shown_cats = {path for path, _ in examples if path.startswith("cat/")}
    assert {by_path[path].content_hash for path in shown_cats} <= {item.content_hash for item in cats[:10]}


def test_no_empty_boxes(tmp_path):
    page = Page(make_report(*publish_indexed(tmp_path, [Made("a/0.png", "a", pixels(0))])))
    assert "1 example read from 1 of 1 shard" in page.text
    for heading in ("Rejected", "Exact copies", "Conflicting"):
        assert heading not in page.text
    assert page.tags["section"] == 3
    assert page.tags["svg"] == 0, "one value needs no chart"
    assert "Width: all 40 px . Height: all 30 px . Aspect ratio: all 1.33 . File size: all 700 bytes" in page.text


def test_a_split_that_is_not_wanted_is_not_lacking(tmp_path):
    split = SplitConfig(train=1, validation=0, test=0)
    page = make_report(*publish_indexed(tmp_path, [Made("a/0.png", "a", pixels(0))], split=split))
    assert "has no example" not in Page(page).text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(tmp_path, name):
    items = [
        Made(name, name, pixels(0)), Made(name + "2", name, pixels(0)), Made(name + "3", name, pixels(1)),
        Made(name + "4", name, reason=name, detail=name),
        Made(name + "5", name, reason="conflicting_labels", content=b""),
        Made("other", "b", reason="conflicting_labels", content=b""),
    ]  # fmt: skip
    data = make_report(*publish_indexed(tmp_path / "set", items))
    page = Page(data)
    assert page.tags["script"] == 0
    assert not re.search(r"<img[^>]*onerror=", re.sub(r'"[^"]*"', '""', data.decode()))
    assert truncate_printable(name, 110) in " ".join(page.words)
    assert "long" * 40 not in page.text
    assert not set(page.text) & set("\n\r\x1b\u202e")


@settings(max_examples=40)
@given(st.text(max_size=60), st.integers(3, 40))
def test_names_are_printable_and_cut(text, limit):
    result = truncate_printable(text, limit)
    assert result.isprintable()
    assert len(result) <= limit
    assert result == text or not text.isprintable() or len(text) > limit


def test_ten_thousand_classes_fit_on_a_page(tmp_path):
    items = [Made(f"{n:05d}{'y' * 290}", f"class {n:05d}", pixels(n, (1, 2, 2)), content=b"%d" % n)
             for n in range(10_000)]  # fmt: skip
    items += [Made(f"{n} more", "class 00007", pixels(n, (1, 2, 2)), content=b"more %d" % n) for n in range(3)]
    data = make_report(*publish_indexed(tmp_path, items))
    text = Page(data).text
    assert len(data) < MAX_PAGE_BYTES
    assert "The 50 largest" in text
    assert "class 00007 4 4" in text
    assert "The 9,900 classes between hold 9,900 examples" in text
    assert "Examples of a class 1 to 4, median 1" in text
    assert "30 of 10,000 classes" in text
    assert "test has no example of 10,000 classes" in text
    assert "and 9,950 more" in text


def test_noise_that_no_codec_packs_fits_on_a_page(tmp_path):
    items = [Made(f"{n // 8}/{n % 8}", f"{n // 8:02d}", pixels(n, (3, 120, 120))) for n in range(240)]
    data = make_report(*publish_indexed(tmp_path, items, shard_bytes=2_000_000))
    assert len(Page(data).pictures) == 241
    assert len(data) < MAX_PAGE_BYTES


class Counting(Dataset):
    """A DataSet that notes what is read of it."""

    def read(self, shard, start, stop, **names):
        self.was_read = {*getattr(self, "was_read", ()), shard.name}
        return super().read(shard, start, stop, **names)


def test_few_shards_are_read_and_a_rare_class_is_found(tmp_path):
    items = [Made(f"common/{n}", "common", pixels(n)) for n in range(200)]
    items += [Made("rare/0", "rare", pixels(1000), "test"), Made("rare/1", "rare", pixels(1001))]
    made, _ = publish_indexed(tmp_path, items, shard_bytes=300)
    dataset = Counting(made.uri, made.manifest)
    found = draw(dataset)
    assert len(made.manifest.shards) > 2 * MAX_SHARDS
    assert len(dataset.was_read) == found.num_shards <= MAX_SHARDS
    assert {one.name: len(one.examples) for one in found.classes} == {"common": 8, "rare": 2}


def test_a_damaged_shard_is_told(tmp_path):
    dataset, index = publish_indexed(tmp_path, [Made(f"a/{n}", "a", pixels(n)) for n in range(9)])
    path = tmp_path / "shards" / dataset.manifest.shards[0].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RetryableError, match=shard_uri(dataset.uri, path.name)):
        make_report(dataset, index)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["accepted", "odd", "conflicting_labels"])), min_size=1))
def test_figures_equal_counts_of_the_rows(tmp_path_factory, rows):
    items = [Made("a/first", "a", pixels(99, (1, 2, 2)))]
    for number, (content, fate) in enumerate(rows):
        name = "ab"[content % 2] if fate == "accepted" else "ab"[number % 2]
        reason = None if fate == "accepted" else fate
        drawn = pixels(content, (1, 2, 2)) if reason is None else None
        items.append(Made(f"{name}/{number}", name, drawn, reason=reason, content=b"%d" % content))
    dataset, index = publish_indexed(tmp_path_factory.mktemp("set"), items)
    found = DatasetStatistics(dataset.manifest, index)
    assert {one.reason: one.num_images for one in found.rejections} == dataset.manifest.num_rejected_by_reason
    contents = Counter(item.content_hash for item in items if item.reason is None)
    assert found.num_copied == sum(n > 1 for n in contents.values())
    assert found.num_copies == sum(n - 1 for n in contents.values())
    assert [one.num_images for one in found.copies] == sorted((n for n in contents.values() if n > 1), reverse=True)
    in_conflict = [item for item in items if item.reason == "conflicting_labels"]
    assert sum(one.num_images for one in found.conflicts) == len(in_conflict)
    assert sum(one.num_contents for one in found.conflicts) == len({item.content_hash for item in in_conflict})
    assert sum(one.num_examples for one in found.classes) + found.num_rejected == len(items)
