"""Patterns from outside: what they find, that none can hang a job, and what is said of those that are wrong."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.config.loading import load_job
from shardmean.jobs.config.patterns import extract, matches
from shardmean.jobs.config.source import SourceConfig
from shardmean.model.errors import UserError

PATHS = st.lists(st.text("ab/.\n\xe9 *", min_size=1, max_size=12), min_size=1, max_size=5)


@given(paths=PATHS)
def test_extraction_keeps_the_order_and_leaves_gaps(paths):
    rests = [path[1:] if path.startswith("a") else None for path in paths]
    assert extract(pa.array(paths), "^a(?P<label>(?s:.)*)$", "label").to_pylist() == rests


def matched(paths: list[str], globs: list[str]) -> list[bool]:
    return matches(pa.array(paths), globs).to_pylist()


@given(paths=PATHS)
def test_the_order_of_globs_does_not_matter_and_each_counts(paths):
    globs = ["a*", "b/", "*.a"]
    each = [matched(paths, [glob]) for glob in globs]
    assert matched(paths, globs) == matched(paths, globs[::-1]) == [any(found) for found in zip(*each, strict=True)]


@pytest.mark.parametrize(
    ("glob", "found", "not_found"),
    [
        ("*.png", ["a.png", "a/b.png", "/a/b\nc.png"], ["a.jpg", "a.png2"]),
        ("raw/", ["raw/a.png", "a/raw/b/c.png"], ["raw", "a/draw/b.png"]),
        ("/a/*.png", ["a/b.png", "/a/b.png"], ["a/b/c.png", "b/a/c.png"]),
        ("a/**/x?.jpg", ["a/x1.jpg", "a/b/c/x2.jpg"], ["a/x.jpg", "b/a/x1.jpg"]),
        ("[0-4].png", ["3.png", "a/0.png"], ["7.png", "33.png"]),
        ("[!0-4].png", ["7.png"], ["3.png"]),
        (r"\#\*.png", ["#*.png"], ["#a.png"]),
        ("caf\xe9*", ["caf\xe9.png"], ["cafe.png"]),
    ],
)
def test_globs_are_those_of_gitignore(glob, found, not_found):
    assert matched(found + not_found, [glob]) == [True] * len(found) + [False] * len(not_found)


@pytest.mark.parametrize("pattern", ["(?P<label>(?:a+)+)$", "(?P<label>(?:a|a)*b)", "(?P<label>(?:a?){50}a{50})b"])
def test_hostile_expressions_take_linear_time(pattern):
    started = time.monotonic()
    extract(pa.array(["a" * 4000 + "!"] * 20), pattern, "label")
    assert time.monotonic() - started < 20


def test_hostile_globs_take_linear_time():
    started = time.monotonic()
    assert matched(["a" * 4000] * 20, [f"{'*a' * 100}*b"]) == [False] * 20
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"label_pattern": "("}, "source.label_pattern = '(': missing ): ("),
        ({"label_pattern": "x"}, "groups named nothing; expected one group, (?P<label>...)"),
        ({"label_pattern": "(?P<name>x)"}, "groups named name; expected one group, (?P<label>...)"),
        ({"label_pattern": "(?P<label>x)(?P<b>y)"}, "groups named label, b; expected one"),
        ({"label_pattern": "(a)(?P<label>x)"}, "unnamed groups; write it in RE2's syntax"),
        ({"label_pattern": r"(?P<label>a)(?=b)"}, "no look-around"),
        ({"label_pattern": r"(?P<label>a)\1"}, "no back-references"),
        ({"label_pattern": "(?P<label>(?:(?:a{1000}){1000}){1000})"}, "repetition size"),
        ({"label_pattern": f"(?P<label>{'a' * 1000})"}, "at most 1000"),
        ({"group_pattern": "(?P<label>x)"}, "groups named label; expected one group, (?P<group>...)"),
        ({"include": ["*.png", "!a"]}, "no pattern; write it as in .gitignore"),
        ({"exclude": ["# all"]}, "no pattern; write it as in .gitignore"),
        ({"exclude": [""]}, "no pattern; write it as in .gitignore"),
        ({"exclude": ["a\\"]}, "no pattern; write it as in .gitignore"),
        ({"exclude": ["[z-a]"]}, "no pattern; write it as in .gitignore"),
        ({"exclude": "*.png"}, "valid list"),
        ({"label_from": "pattern"}, "label_from=pattern and label_pattern need each other"),
        ({"label_pattern": "(?P<label>x)"}, "label_from=pattern and label_pattern need each other"),
        ({"label_from": "top_folder", "layout": "table"}, "use parent_folder or pattern"),
        ({"label_from": "parent_folder", "layout": "idx"}, "not for layout=idx"),
        ({"split_folders": True, "layout": "table"}, "split_folders is for layout=folders"),
        ({"split_files": True}, "split_files is for layout=idx; leave it out with layout=folders"),
        ({"split_column": "x"}, "split_column is for layout=table"),
        ({"group_column": "x"}, "group_column is for layout=table"),
        ({"extra_columns": ["x"]}, "extra_columns is for layout=table"),
        ({"group_column": "x", "group_pattern": "(?P<group>x)", "layout": "table"}, "leave one out"),
        ({"extra_columns": ["Path", "x"], "layout": "table"}, "must not hold path: every DataSet has a column"),
        ({"extra_columns": ["x", "X"], "layout": "table"}, "names a column twice"),
        ({"uri": "s3://key:secret@bucket"}, "must hold no password; give it by environment"),
    ],
)
def test_wrong_settings_of_a_source(settings, part):
    params = {f"source.{key}": value for key, value in ({"uri": "/x"} | settings).items()}
    with pytest.raises(UserError) as caught:
        load_job(VectorizeJob, None, ["dataset_uri=/y"], json.dumps(params))
    assert part in str(caught.value)


def test_lists_come_from_the_command_line():
    job = load_job(VectorizeJob, None, ["source.uri=/x", "dataset_uri=/y", "source.include=['*.png',b/]"])
    assert job.source == SourceConfig(uri="/x", include=["*.png", "b/"])
