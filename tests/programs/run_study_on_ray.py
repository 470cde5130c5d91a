"""Run three cells of the tiny study, in this process or on a local Ray cluster.

    python -m tests.programs.run_study_on_ray FOLDER here|ray|kill

With "kill", the first worker that trains is killed. Prints the numbers of records, of
killed workers and of stages that this process ran itself.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from jaxprune.study import cluster, runner
from tests.programs.launch import ROOT
from tests.study.tiny_study import DIGITS, cell, study

CELLS = [cell("magnitude", 0.5), cell("magnitude", 1.0), cell("snip")]


def _kill_worker(folder: Path, killed: list[int]) -> None:
    """Kill the first process that has the lock of a stage that trains."""
    while not killed:
        for path in (folder / "tiny" / "locks").glob("train-*.owner"):
            try:
                killed.append(json.loads(path.read_text())["pid"])
            except (OSError, ValueError):  # the file is being written
                continue
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.01)


def _run_on_ray(folder: Path, kill: bool) -> None:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    killed: list[int] = []
    if kill:
        threading.Thread(
            target=_kill_worker, args=(folder, killed), daemon=True
        ).start()
    cluster.run(study(*CELLS), folder, DIGITS)
    ran: list[str] = []
    finished = runner.run(
        study(*CELLS), folder, DIGITS, lambda now: ran.append(now.stage.id)
    )
    print(len(list(finished)), len(killed), len(ran), flush=True)
    ray.shutdown()


def main(folder: str, where: str) -> None:
    """Run the cells."""
    if where == "here":
        list(runner.run(study(*CELLS), Path(folder), DIGITS))
    else:
        _run_on_ray(Path(folder), kill=where == "kill")


if __name__ == "__main__":
    main(*sys.argv[1:])
