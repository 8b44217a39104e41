"""Storages: opened by several at once, refused where they cannot be shared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mixq.errors import InputError
from mixq.searcher.storage import check_shared, open_storage, sqlite_file

AT_ONCE = 4


def opened_at_once(url: str) -> None:
    """Each opener makes the tables that it does not find."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for storage in pool.map(open_storage, [url] * AT_ONCE):
            assert storage.get_all_studies() == []


def test_a_new_file_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    opened_at_once(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a/study.db", "a/study.db"),
        ("sqlite+pysqlite:////a/study.db?timeout=3", "/a/study.db"),
        ("sqlite:///a{{b}}.db", "a{b}.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("sqlite:///file:a?mode=memory&uri=true", None),
        ("postgresql://host/a", None),
    ],
)
def test_the_file_of_a_storage(url: str, path: str | None) -> None:
    assert sqlite_file(url) == (None if path is None else Path(path))


@pytest.mark.parametrize("url", ["sqlite:///a.db", "postgresql://host/a", "postgresql+psycopg://me:pw@host/a"])
def test_what_may_be_shared(url: str) -> None:
    check_shared(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://me:s3cret@host/a", "garbage", "sqlite:x"])
def test_what_may_not_be_shared(url: str) -> None:
    with pytest.raises(InputError) as refused:
        check_shared(url)
    assert "s3cret" not in str(refused.value)
