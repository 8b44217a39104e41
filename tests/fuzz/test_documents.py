"""Configurations, spaces, summaries and certificates that are almost right are read, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixq import show
from mixq.certificate import Certificate
from mixq.errors import InputError, shown
from mixq.searcher.space import load_space
from tests.bad_input.refusal import check
from tests.fuzz.documents import CERTIFICATE, CONFIG, SPACE, SUMMARY
from tests.fuzz.mutations import damaged, mutated

QUICK = {"config": 100, "space": 100, "summary": 60, "certificate": 40}
LONG = {"config": 2500, "space": 3000, "summary": 2000, "certificate": 1500}  # with those of test_models: 10,000


def read_config(path: Path) -> None:
    show.path(path).encode()  # it can be printed


def read_space(path: Path) -> None:
    space = load_space(path)
    for layer in ("", "head", "encoder.0.query", "[!", "\n"):
        space.schemes(layer)
    space.model_dump_json()


def read_summary(path: Path) -> None:
    folder = path.parent
    (folder / "best.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    path.rename(folder / "summary.json")
    show.path(folder).encode()


def read_certificate(path: Path) -> None:
    Certificate.load(path)


Reader = Callable[[Path], None]
KINDS: dict[str, tuple[Any, Callable[[Any], str], Reader]] = {
    "config": (CONFIG, json.dumps, read_config),
    "space": (SPACE, lambda value: yaml.dump(value, allow_unicode=True), read_space),
    "summary": (SUMMARY, json.dumps, read_summary),
    "certificate": (CERTIFICATE, json.dumps, read_certificate),
}


def read_or_refused(read: Reader, path: Path) -> None:
    """A refusal is as it must be."""
    try:
        read(path)
    except InputError as error:
        check(f"mixq: {shown(str(error))}\n")


def fuzz(kind: str, examples: int, folder: Path) -> None:
    document, write, read = KINDS[kind]
    path = folder / "document"

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(document).flatmap(lambda value: damaged(write(value))))
    def run(text: str) -> None:
        path.write_bytes(text.encode(errors="surrogatepass"))
        read_or_refused(read, path)

    run()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_is_right_is_read(kind: str, tmp_path: Path) -> None:
    document, write, read = KINDS[kind]
    (tmp_path / "document").write_text(write(document), encoding="utf-8")
    read(tmp_path / "document")


@pytest.mark.parametrize("kind", QUICK)
def test_a_document_that_is_almost_right(kind: str, tmp_path: Path) -> None:
    fuzz(kind, QUICK[kind], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_thousands_of_them(kind: str, tmp_path: Path) -> None:
    fuzz(kind, LONG[kind], tmp_path)


def test_bytes_of_no_meaning(tmp_path: Path) -> None:
    path = tmp_path / "document"

    @settings(suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=64))
    def run(data: bytes) -> None:
        for read in (read_config, read_space, read_certificate):
            path.write_bytes(data)
            read_or_refused(read, path)

    run()
