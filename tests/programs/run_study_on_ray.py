"""Run three cells of the tiny study on a local Ray cluster.

    python -m tests.programs.run_study_on_ray FOLDER

The first worker that trains is killed. Prints the numbers of records, of
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


def main(path: str) -> None:
    """Run the cells."""
    import ray

    folder = Path(path)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    killed: list[int] = []
    threading.Thread(target=_kill_worker, args=(folder, killed), daemon=True).start()
    cluster.run(study(*CELLS), folder, DIGITS)
    ran: list[str] = []
    finished = runner.run(
        study(*CELLS), folder, DIGITS, lambda now: ran.append(now.stage.id)
    )
    print(len(list(finished)), len(killed), len(ran), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
