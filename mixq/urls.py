"""URLs of stores as they may be shown: without passwords."""

from __future__ import annotations

import re

HIDDEN = "***"
STORAGE = "MIXQ_STORAGE"  # may hold the storage's URL: everybody could read it, and its password, in a command


def redacted(url: str) -> str:
    """The URL without a password, be it in the credentials or in the query."""
    scheme, separator, rest = re.sub(r"(?i)((?:password|token)=)[^&]*", rf"\1{HIDDEN}", url).partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}{colon and f'{colon}{HIDDEN}'}{at}{host}"


def without_secrets(text: str, url: str) -> str:
    """`text`, which may quote the URL or its password, with neither of them."""
    found = text.replace(url, redacted(url))
    for secret in _secrets(url):
        found = found.replace(secret, HIDDEN)
    return found


def _secrets(url: str) -> list[str]:
    rest = url.partition("://")[2]
    credentials, at, _ = rest.rpartition("@")
    password = credentials.partition(":")[2] if at else ""
    return [secret for secret in (password, *re.findall(r"(?i)(?:password|token)=([^&]+)", url)) if secret]
