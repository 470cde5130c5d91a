"""A study on a local Ray cluster gives the records of `local`, also if a worker is lost."""

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
    here = tmp_path / "here"
    # This also runs in a new process, so that Ray is the only difference.
    launch.run("run_study_on_ray", here, "here")
    output = launch.run("run_study_on_ray", tmp_path / "ray", "kill")
    cells, killed, trained = output.splitlines()[-1].split()
    assert (cells, killed) == ("3", "1")
    stages = runner.plan(study(*CELLS), here / "tiny").stages
    assert int(trained) == sum(stage.kind == "train" for stage in stages)
    assert results(tmp_path / "ray" / "tiny") == results(here / "tiny")


def test_a_cluster_that_does_not_answer_is_refused(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    nowhere = cluster.executor(address="127.0.0.1:1")
    with pytest.raises(RunsError, match=r"at RAY_ADDRESS=127.0.0.1:1 \(.*refused\). S"):
        list(runner.run(study(*CELLS), tmp_path, DIGITS, executor=nowhere))
    assert signal.getsignal(signal.SIGTERM) is before


def test_invalid_arguments_are_refused_before_anything_runs(monkeypatch):
    with pytest.raises(ValueError, match="cpus is how many CPUs a stage gets; got 0"):
        cluster.executor(cpus=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"not installed. Run: pip install 'jaxprune\[sc"
    ):
        cluster.executor()
