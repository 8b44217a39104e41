"""What the README shows really runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mixq

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_example_is_short() -> None:
    assert len(example().strip().splitlines()) <= 20


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(example(), encoding="utf-8")
    space = ROOT / "search_spaces" / "cpu.yaml"
    found = mixq.search(
        f"{tmp_path / 'my_task.py'}:MyTask",
        space,
        tmp_path / "out",
        max_drop=0.05,
        trials=7,
        tracking="none",
        quiet=True,
    )
    assert found.feasible
    assert mixq.verify(tmp_path / "out").ok


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
