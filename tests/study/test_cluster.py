"""A study on a local Ray cluster gives the same records, also if a worker is lost."""

import signal
import sys

import pytest

from jaxprune.study import cluster, runner
from jaxprune.study.files import RunsError
from tests.programs import launch
from tests.programs.run_study_on_ray import CELLS
from tests.study.tiny_study import DIGITS, results, study


def test_a_lost_worker_does_not_change_the_results(tmp_path):
    """There are two workers, and one is killed while it trains."""
    output = launch.run("run_study_on_ray", tmp_path / "ray")
    assert output.splitlines()[-1].split() == ["3", "1", "0"]
    list(runner.run(study(*CELLS), tmp_path / "here", DIGITS))
    assert results(tmp_path / "ray" / "tiny") == results(tmp_path / "here" / "tiny")


def test_a_cluster_that_does_not_answer_is_refused(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    nowhere = cluster.Cluster(address="127.0.0.1:1")
    with pytest.raises(RunsError, match=r"at RAY_ADDRESS=127.0.0.1:1 \(.*refused\). S"):
        cluster.run(study(*CELLS), tmp_path, DIGITS, nowhere)
    assert signal.getsignal(signal.SIGTERM) is before


def test_invalid_arguments_are_refused_before_anything_runs(monkeypatch, tmp_path):
    arguments = study(*CELLS), tmp_path, DIGITS
    with pytest.raises(ValueError, match="number of CPUs of each worker; got 0"):
        cluster.run(*arguments, cluster.Cluster(cpus=0))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"not installed. Run: pip install 'jaxprune\[sc"
    ):
        cluster.run(*arguments)
