"""Send the stages of a study to a Ray cluster.

Stages pass nothing to each other but files: every machine sees the runs folder, the data
set and this package under the same paths. A lock goes with the worker that held it, so that
whoever takes up a lost stage finds it free.
"""

import contextlib
import functools
import itertools
import logging
import signal
import socket
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jaxprune.study import files, stages, store
from jaxprune.study.config import Cell
from jaxprune.study.executors import Begin, Executor, Tell
from jaxprune.study.files import RunsError
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage

RETRIES = 3  # of a task whose worker was lost


class _Task(NamedTuple):
    """Stages that one worker runs one after another; the last make the record.

    Attributes:
        is_timed: it measures, so that nothing else may run on its machine.
    """

    cell: Cell
    stages: Sequence[Stage]
    is_last: bool
    is_timed: bool


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at an address, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _take_signals_back() -> None:
    """Let signals go to their handlers again: Ray's C++ takes them, unseen by Python."""
    for number, handler in files.stop_handlers().items():
        signal.signal(number, handler)


def _join(
    address: str, environment: Mapping[str, str], thread: ThreadPoolExecutor
) -> None:
    import ray

    # It says that a thread gets no handler of SIGTERM.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    try:
        _check_answers(address)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            variables = {"env_vars": dict(environment)}
            thread.submit(ray.init, address, runtime_env=variables).result()
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise RunsError(
            f"no Ray cluster can be had at RAY_ADDRESS={address} ({first}). Start one there "
            "with `ray start --head`, or correct the address, such as 10.0.0.1:6379 (set "
            "RAY_AUTH_MODE=token too, if it asks for tokens); without an address a cluster "
            "of this machine alone is started."
        ) from error
    _take_signals_back()


@contextlib.contextmanager
def _connected(address: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Join or start a cluster, and leave it as it was."""
    import ray

    if ray.is_initialized():
        yield
        return
    # In a thread: in the main one Ray would take SIGTERM from whoever handles it. The
    # thread stays, because Linux ends with it what it has started.
    with ThreadPoolExecutor(1) as thread:
        try:
            _join(address, environment, thread)
            yield
        finally:
            ray.shutdown()
            _take_signals_back()


def _needs(cpus: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a stage takes of the cluster, and what one takes that is timed."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(machine.get("GPU", 0) >= 1 for machine in machines):
        return {"num_gpus": 1}, {"num_gpus": 1}
    most = int(max(machine.get("CPU", 0) for machine in machines))
    if most < cpus:
        raise ValueError(
            f"a stage is to have {cpus} CPUs, and no machine of the cluster has more than "
            f"{most}. Pass --cpus {most} or fewer."
        )
    return {"num_cpus": cpus}, {"num_cpus": most}


@functools.lru_cache(maxsize=1)
def _users(cells: tuple[Cell, ...]) -> Counter[str]:
    """Count the cells that have a stage."""
    return Counter(stage.id for cell in cells for stage in stages.chain(cell))


def _tasks(cell: Cell, cells: Sequence[Cell]) -> list[_Task]:
    """Split a cell where other cells leave it, and where it begins to be timed."""
    chain = stages.chain(cell)
    users = _users(tuple(cells))
    kinds = [(users[stage.id], stage.kind in store.TIMED) for stage in chain]
    ends = [i for i in range(1, len(chain)) if kinds[i] != kinds[i - 1]]
    return [
        _Task(cell, chain[i:j], j == len(chain), kinds[i][1])
        for i, j in itertools.pairwise([0, *ends, len(chain)])
    ]


def _work(begin: Begin, cell: Cell, until: str | None, before: Any) -> Any:
    """Run on a worker what is left of a cell up to a stage."""
    del before  # Ray waits for it
    return begin(cell, until=until)()


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
            "repair the cluster and run the same command again."
        ) from error


def _run(
    cells: Sequence[Cell], begin: Begin, tell: Tell, cpus: int
) -> Iterator[Record]:
    import ray

    needs, timed_needs = _needs(cpus)
    work = ray.remote(max_retries=RETRIES)(_work)
    sent: dict[str, Any] = {}
    running: dict[Any, _Task] = {}
    for cell in cells:
        before = None
        for task in _tasks(cell, cells):
            last = task.stages[-1].id
            if task.is_last or last not in sent:
                until = None if task.is_last else last
                send = work.options(**(timed_needs if task.is_timed else needs))
                sent[last] = send.remote(begin, cell, until, before)
                running[sent[last]] = task
            before = sent[last]
    try:
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(done)
            record = _result(done)
            for stage in task.stages:
                tell(task.cell, stage, stages.epochs(stage), None)
            if task.is_last:
                yield record
    finally:
        for left in running:
            ray.cancel(left)


def executor(
    cpus: int = 1,
    environment: Mapping[str, str] | None = None,
    address: str | None = None,
) -> Executor:
    """Make an executor that runs stages on Ray, shared ones before what needs them.

    Joins the cluster that this process is connected to, else the one at `address`, else
    starts one on this machine. A stage gets one GPU where the cluster has any. Where it has
    none, stages that are timed get all the CPUs of one of its largest machines, so that they
    come when that is free.

    Args:
        cpus: of each stage that is not timed, where there are no GPUs.
        environment: variables of the workers.
        address: of a cluster, such as 10.0.0.1:6379, ray://10.0.0.1:10001 or auto.

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

    def run(cells: Sequence[Cell], begin: Begin, tell: Tell) -> Iterator[Record]:
        with _connected(address or "local", environment or {}):
            yield from _run(cells, begin, tell, cpus)

    return run
