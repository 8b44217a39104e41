"""Several processes, started by torchrun, train as one does: the same losses, and one answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mixq.config import Training
from tests.qat.networks import all_trained, uneven

TASK = "tests.qat.networks:Uneven"


def evaluated(config: Path, *launcher: str) -> dict[str, float]:
    command = [sys.executable, "-m", *launcher, "mixq", "evaluate", TASK, str(config), "--json", "--quiet"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert found.returncode == 0, found.stderr
    answer: dict[str, float] = json.loads(found.stdout)["evaluation"]
    return answer


OUTLIVED = """
import weakref
import torch.distributed
from mixq.qat.group import joined
with joined():
    import torch.distributed.nn.functional  # as torch's exporter does
    group = weakref.ref(torch.distributed.group.WORLD)
print("kept" if group() else "gone")
"""


def test_nothing_keeps_the_group_alive() -> None:
    """Its threads would live as long, and now and then abort a process whose interpreter is at its end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", OUTLIVED],
        env=os.environ | alone,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.stdout == "gone\n", found.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The gradients are summed in another order, no more; the followers print nothing."""
    config = all_trained(uneven(), Training(steps=12, learning_rate=0.1, bank=6, hints=1.0))
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    alone = evaluated(path)
    together = evaluated(path, "torch.distributed.run", "--nproc-per-node", "2", "-m")
    assert together["output_mse"] == pytest.approx(alone["output_mse"], rel=0.1)
    untrained = all_trained(uneven(), Training(steps=1, learning_rate=1e-9))
    path.write_text(untrained.to_json(), encoding="utf-8")
    assert evaluated(path)["output_mse"] > 1.3 * alone["output_mse"]
