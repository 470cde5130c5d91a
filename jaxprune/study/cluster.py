"""Run a study on a Ray cluster: workers that run the same study in one shared folder.

Workers share nothing but files, so that every machine must see the runs folder, the data set
and this package under the same paths. The locks of the folder divide the work. A worker that
is lost releases its locks, and is started again.
"""

import contextlib
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxprune.study import runner, workbench
from jaxprune.study.config import Study
from jaxprune.study.files import RunsError

RETRIES = 3  # of a worker that was lost


class Cluster(NamedTuple):
    """Where workers run.

    Attributes:
        cpus: CPUs of each worker, without GPUs.
        environment: variables of the workers.
        address: of a cluster, such as 10.0.0.1:6379, ray://10.0.0.1:10001 or auto; None
            starts one on this machine.
    """

    cpus: int = 1
    environment: Mapping[str, str] = MappingProxyType({})
    address: str | None = None


def run(
    study: Study,
    runs_dir: Path,
    source: workbench.Source,
    cluster: Cluster | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Run a study on a cluster; `runner.run` then reads its records.

    Joins the cluster that this process is connected to, if there is one, or the one at
    `cluster.address`. There is one worker per GPU, or without GPUs one per `cluster.cpus`
    CPUs, and no more than cells.

    Args:
        study: its cells.
        runs_dir: folder of all studies, on a disk that all machines share.
        source: the data set.
        cluster: where workers run; by default on this machine.
        on_wait: called every 10 seconds.

    Raises:
        ValueError: if `cpus` is not positive or more than a machine has, or Ray is not
            installed.
        RunsError: if no cluster answers, or a worker was lost too often.
    """
    cpus, environment, address = cluster or Cluster()
    if cpus < 1:
        raise ValueError(
            f"cpus is the number of CPUs of each worker; got {cpus}. Pass 1 or more."
        )
    try:
        import ray
        from ray import exceptions
    except ImportError as error:
        raise ValueError(
            "--executor ray needs the package ray, which is not installed. Run: "
            "pip install 'jaxprune[scale]'"
        ) from error
    with _connected(address or "local", environment):
        number, needs = _workers(cpus)
        work = ray.remote(max_retries=RETRIES, **needs)(_work)
        place = Path(runs_dir).absolute()
        waiting = [
            work.remote(study, place, source)
            for _ in range(min(number, len(study.cells)))
        ]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=10)
                ray.get(done)
                on_wait()
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            raise RunsError(
                f"Ray lost a worker {RETRIES + 1} times ({_first_line(error)}). What was "
                "finished is complete; repair the cluster and run the same command again."
            ) from error
        finally:
            for left in waiting:
                ray.cancel(left)


def _work(study: Study, runs_dir: Path, source: workbench.Source) -> int:
    return len(list(runner.run(study, runs_dir, source)))


def _workers(cpus: int) -> tuple[int, dict[str, Any]]:
    """Return the number of workers, and what each takes of the cluster."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        return gpus, {"num_gpus": 1}
    most = int(max(machine.get("CPU", 0) for machine in machines))
    if most < cpus:
        raise ValueError(
            f"a worker is to have {cpus} CPUs, and no machine of the cluster has more than "
            f"{most}. Pass --cpus {most} or fewer."
        )
    number = sum(int(machine.get("CPU", 0)) // cpus for machine in machines)
    return number, {"num_cpus": cpus}


@contextlib.contextmanager
def _connected(address: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Join or start a cluster, and leave it as it was."""
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        _check_answers(address)
        with _same_signals(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            ray.init(address, runtime_env={"env_vars": dict(environment)})
    except (OSError, ValueError, RuntimeError) as error:
        raise RunsError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({_first_line(error)}). Start "
            "one there with `ray start --head`, or correct the address, such as "
            "10.0.0.1:6379 (set RAY_AUTH_MODE=token too, if it asks for tokens); without an "
            "address, a cluster of this machine alone is started."
        ) from error
    try:
        yield
    finally:
        with _same_signals():
            ray.shutdown()


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Give signals back to their handlers: Ray takes them, in C++ too."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # no other thread may set handlers
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at an address, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
