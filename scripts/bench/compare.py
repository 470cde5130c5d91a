"""The comparison: jaxprune and PyTorch do the same tasks in one run."""

import _cli

import importlib.metadata  # isort: skip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import ours
from jaxprune import profiling
from jaxprune.study import provenance

Task = Literal[
    "snip",
    "grasp",
    "synflow_1",
    "synflow_100",
    "select",
    "train_step",
    "evaluate",
    "imp_level",
    "cold_start",
]
TASKS: tuple[Task, ...] = get_args(Task)
# Forward passes of one image per run; a backward pass counts as two.
PASSES = {
    "snip": 3 * ours.IMAGES,
    "train_step": 3 * ours.BATCH * ours.STEPS,
    "evaluate": ours.EVALUATED,
}


class Timing(NamedTuple):
    """What was measured of one side.

    Attributes:
        seconds: of each run.
        rss_mb: peak memory of the process, in MB (1e6 bytes).
    """

    seconds: Sequence[float]
    rss_mb: float


def compare(
    only: Annotated[tuple[tuple[Task, ...], ...], tyro.conf.UseAppendAction] = (),
    repeats: int = 5,
    threads: int | None = None,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time each task in jaxprune and in PyTorch, interleaved; print medians and ratios.

    Args:
        only: tasks to time, by default all.
        repeats: runs of each task on each side.
        threads: CPU cores that each side may use, by default all.
        to: file to write the measurements to.
    """
    tasks: list[Task] = (
        [task for group in only for task in group] if only else list(TASKS)
    )
    if not tasks:
        raise ValueError(
            f"--only names no task. Pass some of {', '.join(TASKS)}, or leave it out."
        )
    cores = sorted(os.sched_getaffinity(0))
    threads = len(cores) if threads is None else threads
    if repeats < 1 or not 1 <= threads <= len(cores):
        raise ValueError(
            f"--repeats must be 1 or more, and --threads 1 to {len(cores)} on this machine; "
            f"got {repeats} and {threads}."
        )
    _cli.check_installed("torch")
    if to is not None:
        _cli.check_writable(to)
    os.sched_setaffinity(0, cores[:threads])  # inherited by every subprocess
    os.environ["OMP_NUM_THREADS"] = str(threads)
    machine = _machine(threads)
    rows = []
    for task in track(tasks, "timing", console=Console(stderr=True), transient=True):
        rows.append(_row(task, repeats))
        if to is not None:  # after each task, so that no measurement is lost
            result = {"machine": machine, "repeats": repeats, "rows": rows}
            _cli.write_text(to, json.dumps(result, indent=1) + "\n")
    _print(rows, machine)


def _machine(threads: int) -> dict[str, Any]:
    """Describe the machine, and measure its fastest matrix product and copy."""
    square, copied = jnp.ones((4096, 4096)), jnp.ones(2**26)
    dot = profiling.latency(jnp.dot, square, square, calls=5).p50
    copy = profiling.latency(jnp.copy, copied, calls=5).p50
    return {
        **provenance.describe(),
        "threads": threads,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "torch": importlib.metadata.version("torch"),
        "dot_gflops": 2 * 4096**3 / dot / 1e9,
        "copy_gb_s": 2 * copied.nbytes / copy / 1e9,
    }


def _row(task: Task, repeats: int) -> dict[str, Any]:
    if task == "cold_start":
        timings = _cold_starts(repeats)
    else:
        workers = {"ours": ("ours", task), "torch": ("torch", task)}
        if task == "select":
            workers["jnp_sort"] = ("ours", "sort")
        timings = _interleaved(workers, repeats)
    row: dict[str, Any] = {"work": task}
    steps = ours.STEPS if task == "train_step" else 1
    for side, (seconds, rss_mb) in timings.items():
        per_step = [one / steps for one in seconds]
        row |= {f"{side}_s": statistics.median(per_step), f"{side}_rss_mb": rss_mb}
        row[f"{side}_range_s"] = [min(per_step), max(per_step)]
        if task in PASSES:
            gflop = 2 * ours.macs(ours.vgg()) * PASSES[task] / 1e9
            row[f"{side}_gflops"] = gflop / statistics.median(seconds)
    row["ratio"] = row["torch_s"] / row["ours_s"]
    return row


def _interleaved(
    workers: Mapping[str, Sequence[str]], repeats: int
) -> dict[str, Timing]:
    """Prepare each side in a subprocess, then let them run one after another."""
    processes = {
        side: _start(*worker, stdin=subprocess.PIPE) for side, worker in workers.items()
    }
    for process in processes.values():
        _read_line(process)  # "ready": compiled and warmed up
    seconds: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(repeats):
        for side, process in processes.items():
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
            seconds[side].append(float(_read_line(process)))
    return {
        side: Timing(seconds[side], _finish(process))
        for side, process in processes.items()
    }


def _cold_starts(repeats: int) -> dict[str, Timing]:
    """Time whole processes, from the start of Python to the first result.

    Ours runs twice: with an empty compilation cache, and with the cache of the first start.
    """
    seconds: dict[str, list[float]] = {"ours": [], "ours_again": [], "torch": []}
    peaks: dict[str, list[float]] = {side: [] for side in seconds}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for side in seconds:
                start = time.perf_counter()
                process = _start(
                    side.split("_")[0],
                    "cold_start",
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
                )
                _read_line(process)
                seconds[side].append(time.perf_counter() - start)
                peaks[side].append(_finish(process))
    return {side: Timing(seconds[side], max(peaks[side])) for side in seconds}


def _start(side: str, task: str, **options: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.worker", side, task],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def _read_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} failed; its error is printed above.")
    return line


def _finish(process: subprocess.Popen) -> float:
    """Let a worker exit, and return its peak memory in MB."""
    if process.stdin is not None:
        process.stdin.close()
    peak_mb = float(_read_line(process))
    process.wait()
    return peak_mb


def _print(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    table = Table(box=box.MARKDOWN)
    for title in (
        "task",
        "ours s",
        "PyTorch s",
        "PyTorch / ours",
        "ours MB",
        "PyTorch MB",
    ):
        table.add_column(title, justify="left" if title == "task" else "right")
    for row in rows:
        table.add_row(
            row["work"],
            f"{row['ours_s']:.4f}",
            f"{row['torch_s']:.4f}",
            f"{row['ratio']:.2f}",
            f"{row['ours_rss_mb']:.0f}",
            f"{row['torch_rss_mb']:.0f}",
        )
    console = Console(width=100)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in rows:
        others = [
            name
            for name in row
            if ("jnp" in name or "again" in name or "gflops" in name)
            and not isinstance(row[name], list)
        ]
        if others:
            figures = ", ".join(f"{name} {row[name]:.3g}" for name in others)
            console.print(f"{row['work']}: {figures}")
