"""Send the stages of a study to a Ray cluster.

Stages pass nothing to each other but files: every machine sees the runs folder, the data
set and this package under the same paths. A lock goes with the worker that held it, so that
whoever takes up a lost stage finds it free.
"""

import contextlib
import functools
import itertools
import os
import signal
import socket
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.study import stages
from jaxprune.study.config import Cell
from jaxprune.study.executors import Begin, Executor, Tell
from jaxprune.study.files import RunsError
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage

RETRIES = 3  # of a task whose worker was lost


def executor(cpus: int = 1, environment: Mapping[str, str] | None = None) -> Executor:
    """Make an executor that runs stages on Ray, shared ones before what needs them.

    Joins the cluster that this process is connected to, else the one that the variable
    RAY_ADDRESS names, else starts one on this machine. A stage gets one GPU where the
    cluster has any.

    Args:
        cpus: of each stage where it has none.
        environment: variables of the workers.

    Returns:
        The executor; its records are those of `executors.local`, in the order in which
        they are finished.

    Raises:
        ValueError: if `cpus` is not positive, or Ray is not installed.

    Example:
        >>> executor(cpus=0)
        Traceback (most recent call last):
        ValueError: cpus is how many CPUs a stage gets; got 0. Pass 1 or more.
    """
    if cpus < 1:
        raise ValueError(
            f"cpus is how many CPUs a stage gets; got {cpus}. Pass 1 or more."
        )
    try:
        import ray  # noqa: F401  # so that a slip is told before anything runs
    except ImportError as error:
        raise ValueError(
            "the executor ray needs Ray, which is not installed. Run: "
            "pip install 'jaxprune[scale]'"
        ) from error
    return functools.partial(_run, cpus=cpus, environment=dict(environment or {}))


class _Task(NamedTuple):
    """Stages that are run by one worker, one after another; the last make the record."""

    cell: Cell
    stages: Sequence[Stage]
    is_last: bool


def _run(
    cells: Sequence[Cell],
    begin: Begin,
    tell: Tell,
    *,
    cpus: int,
    environment: Mapping[str, str],
) -> Iterator[Record]:
    import ray

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            _connect(environment)
            stack.callback(ray.shutdown)
        yield from _send(cells, begin, tell, _needs(cpus))


def _needs(cpus: int) -> dict[str, Any]:
    """Return what a stage takes of the cluster."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(machine.get("GPU", 0) >= 1 for machine in machines):
        return {"num_gpus": 1}
    most = max(machine.get("CPU", 0) for machine in machines)
    if most < cpus:
        raise ValueError(
            f"a stage is to have {cpus} CPUs, and no machine of the cluster has more than "
            f"{most:g}. Pass --cpus {most:g} or fewer."
        )
    return {"num_cpus": cpus}


def _connect(environment: Mapping[str, str]) -> None:
    """Join the cluster of RAY_ADDRESS, or start one; signals stay with their handlers."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        _check_answers(address)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            ray.init(address, runtime_env={"env_vars": dict(environment)})
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RunsError(
            f"no Ray cluster can be had at RAY_ADDRESS={address} ({first}). Start one there "
            "with `ray start --head`, or mend the address, such as 10.0.0.1:6379; without "
            "one a cluster of this machine alone is started."
        ) from error
    finally:
        for number, handler in handlers.items():
            if (
                handler is not None
                and threading.current_thread() is threading.main_thread()
            ):
                signal.signal(number, handler)


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at an address, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _send(
    cells: Sequence[Cell], begin: Begin, tell: Tell, needs: Mapping[str, Any]
) -> Iterator[Record]:
    import ray

    work = ray.remote(max_retries=RETRIES, **needs)(_work)
    sent: dict[str, Any] = {}
    running: dict[Any, _Task] = {}
    for cell in cells:
        before = None
        for task in _tasks(cell, cells):
            last = task.stages[-1].id
            if task.is_last or last not in sent:
                until = None if task.is_last else last
                sent[last] = work.remote(begin, cell, until, before)
                running[sent[last]] = task
            before = sent[last]
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        task = running.pop(done)
        record = _result(done)
        for stage in task.stages:
            tell(task.cell, stage, stages.epochs(stage), None)
        if task.is_last:
            yield record


def _work(begin: Begin, cell: Cell, until: str | None, before: Any) -> Any:
    """Run on a worker what is left of a cell up to a stage."""
    del before  # Ray waits for it
    return begin(cell, until=until)()


def _tasks(cell: Cell, cells: Sequence[Cell]) -> list[_Task]:
    """Split a cell where other cells leave it."""
    chain = stages.chain(cell)
    users = _users(tuple(cells))
    ends = [
        i
        for i, (stage, after) in enumerate(itertools.pairwise(chain), start=1)
        if users[stage.id] != users[after.id]
    ]
    parts = itertools.pairwise([0, *ends, len(chain)])
    return [_Task(cell, chain[i:j], j == len(chain)) for i, j in parts]


@functools.lru_cache(maxsize=1)
def _users(cells: tuple[Cell, ...]) -> Counter[str]:
    """Count the cells that have a stage."""
    return Counter(stage.id for cell in cells for stage in stages.chain(cell))


def _result(done: Any) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(done)
    except exceptions.RayTaskError as error:
        raise error.cause from error
    except exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise RunsError(
            f"Ray lost a stage {RETRIES + 1} times ({first}). What was finished is whole; "
            "mend the cluster and run the same again."
        ) from error
