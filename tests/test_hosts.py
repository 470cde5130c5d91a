"""Two processes of two devices each give the results of one process of four."""

import socket
from pathlib import Path

import numpy as np
import pytest

from tests.programs import launch


def run_on(folder: Path, hosts: int) -> None:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        launch.start("train_on_hosts", folder, rank, hosts, port, xla_flags="")
        for rank in range(hosts)
    ]
    try:
        for process in running:
            launch.finish(process)
    finally:
        for process in running:
            process.kill()


def test_two_hosts_give_the_results_of_one(tmp_path):
    """Levels are trained, pruned, rewound, saved and restored on both."""
    for hosts in (1, 2):
        run_on(tmp_path / f"{hosts}", hosts)
    one, two = (dict(np.load(tmp_path / f"{hosts}" / "end.npz")) for hosts in (1, 2))
    assert one.keys() == two.keys()
    for name, array in one.items():
        if array.dtype == bool:
            np.testing.assert_array_equal(two[name], array)
        else:
            np.testing.assert_allclose(two[name], array, rtol=1e-9, atol=1e-12)
    kernels = [
        array
        for name, array in one.items()
        if name.startswith("mask") and "kernel" in name
    ]
    share = sum(a.sum() for a in kernels) / sum(a.size for a in kernels)
    assert share == pytest.approx(0.2, abs=1e-3)
