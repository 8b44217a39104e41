"""Contenders: the very bytes that were measured, of what may become the best, until it is known whether it does."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixq import atomic

CONTENDERS = "contenders"  # the folder's name
SUFFIX = ".onnx"


@dataclass(frozen=True)
class Contenders:
    """Files of `folder`, one for each configuration, by its id. Whoever shares the folder may keep and load them."""

    folder: Path

    def keep(self, config_id: str, model: bytes) -> str:
        """Keep the bytes; their SHA-256. Raises InputError where the folder cannot be written."""
        atomic.write_bytes(self._path(config_id), model)
        return sha256(model)

    def load(self, config_id: str, digest: str) -> bytes | None:
        """The bytes with this SHA-256; None where they are not here, or are others."""
        with suppress(OSError):
            model = self._path(config_id).read_bytes()
            if sha256(model) == digest:
                return model
        return None

    def forget(self, config_ids: Collection[str]) -> None:
        """Those of them that are here."""
        for config_id in config_ids:
            self._path(config_id).unlink(missing_ok=True)

    def _path(self, config_id: str) -> Path:
        return self.folder / f"{config_id}{SUFFIX}"


def sha256(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()
