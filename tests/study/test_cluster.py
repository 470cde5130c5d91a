"""A study on a real local Ray: the records of `local`, also where a worker is lost."""

import signal
import subprocess
import sys

import pytest

from jaxprune.study import cluster, runner
from jaxprune.study.files import RunsError
from tests.study.test_faults import results
from tests.study.test_study import FOUND, ROOT, cell, study

CELLS = [cell("magnitude", 0.5), cell("magnitude", 1.0), cell("snip")]

ON_RAY = """
import json, os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
if sys.argv[2] == "here":  # a fresh process too, so that only Ray is another
    from jaxprune.study import runner
    from tests.study.test_cluster import CELLS
    from tests.study.test_study import FOUND, study
    list(runner.run(study(*CELLS), Path(sys.argv[1]), FOUND))
    sys.exit()
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
         runtime_env={{"env_vars": {{"PYTHONPATH": {root!r}}}}})
from jaxprune.study import cluster, runner
from tests.study.test_cluster import CELLS
from tests.study.test_study import FOUND, study

folder, victims, told = Path(sys.argv[1]), [], []

def kill():
    while not victims:
        for path in (folder / "tiny" / "locks").glob("train-*.owner"):
            try:
                victims.append(json.loads(path.read_text())["pid"])
            except (OSError, ValueError):
                continue
            os.kill(victims[0], signal.SIGKILL)
            return
        time.sleep(0.01)

if sys.argv[2] == "kill":
    threading.Thread(target=kill, daemon=True).start()
tell = lambda now: told.append(now.stage)
found = list(runner.run(study(*CELLS), folder, FOUND, tell, cluster.executor()))
print(len(found), len(victims), told.count("train"), flush=True)
ray.shutdown()
"""


def run_study(folder, *args):
    script = folder / "run.py"
    folder.mkdir()
    script.write_text(ON_RAY.format(root=str(ROOT)))
    command = [sys.executable, str(script), str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split("\n")[-2:][0].split()


def test_a_lost_worker_changes_nothing(tmp_path):
    """Two workers, one of them killed while it trains: the bits of this process."""
    here = tmp_path / "here"
    run_study(here, "here")
    cells, killed, trained = run_study(tmp_path / "ray", "kill")
    assert (cells, killed) == ("3", "1")
    stages = runner.plan(study(*CELLS), here / "tiny").stages
    assert int(trained) == sum(stage.kind == "train" for stage in stages)
    assert results(tmp_path / "ray" / "tiny") == results(here / "tiny")


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    nowhere = cluster.executor(address="127.0.0.1:1")
    with pytest.raises(RunsError, match=r"at RAY_ADDRESS=127.0.0.1:1 \(.*refused\). S"):
        list(runner.run(study(*CELLS), tmp_path, FOUND, executor=nowhere))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_slip_is_told_before_anything_runs(monkeypatch):
    with pytest.raises(ValueError, match="cpus is how many CPUs a stage gets; got 0"):
        cluster.executor(cpus=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"not installed. Run: pip install 'jaxprune\[sc"
    ):
        cluster.executor()
