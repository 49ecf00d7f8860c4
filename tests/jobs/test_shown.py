"""What is shown of a URI: never its password, and all else where that can be told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.common.redaction import holds_password, redact

USERS = st.text("ab1@%&=.$", max_size=4)
SIGNS = st.text("ab1@:/?#%&=.$", max_size=4)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://h/a@b", "http://h/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("sqlite:////folder/a@b/mlflow.db", "sqlite:////folder/a@b/mlflow.db"),
        ("databricks://profile", "databricks://profile"),
        ("https://someone@h/path", "https://h/path"),
        ("https://u:p@h:5000/path?x=y", "https://h:5000/path?x=y"),
        ("postgresql+psycopg2://u:p/?#@h/db", "postgresql+psycopg2://h/db"),
        ("postgresql://h/db?user=u&password=p&x=y", "postgresql://h/db?user=u&password=...&x=y"),
        ("API request to http://u:p@h/api failed: mail a@b", "API request to http://h/api failed: mail a@b"),
        ("no URI, a:b@c", "no URI, a:b@c"),
    ],
)
def test_what_is_shown(uri, shown):
    assert redact(uri) == shown
    assert holds_password(uri) is (":p" in uri or "=p" in uri)


@given(USERS, SIGNS, SIGNS)
def test_no_password_is_shown_whatever_signs_it_has(user, before, after):
    for scheme in ("http", "postgresql"):
        uri = f"{scheme}://{user}:{before}secret{after}@host/db"
        assert "secret" not in redact(uri)
        assert holds_password(uri)
