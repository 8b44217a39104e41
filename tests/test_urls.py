"""URLs and what quotes them: passwords are never shown."""

from __future__ import annotations

import pytest

from mixq.urls import redacted, without_secrets


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://user:secret@host/db", "postgresql://user:***@host/db"),
        ("mysql+pymysql://user:secret@host:3306/db", "mysql+pymysql://user:***@host:3306/db"),
        ("postgresql://user:se@cret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:se:cret@host/db", "postgresql://user:***@host/db"),
        ("postgresql://host/db?password=secret&sslmode=require", "postgresql://host/db?password=***&sslmode=require"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("sqlite:////tmp/me@work/study.db", "sqlite:////tmp/me@work/study.db"),
        ("https://host/mlflow?token=secret", "https://host/mlflow?token=***"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_passwords_are_hidden(given: str, shown: str) -> None:
    assert redacted(given) == shown
    assert "cret" not in redacted(given)
    assert "cret" not in without_secrets(f"cannot reach {given}", given)


def test_an_error_that_quotes_the_password_alone_is_scrubbed() -> None:
    assert without_secrets("no such password: hunter2", "postgresql://me:hunter2@host/db") == "no such password: ***"
    assert without_secrets("nothing to hide", "sqlite:///study.db") == "nothing to hide"
