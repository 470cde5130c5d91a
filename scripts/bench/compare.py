"""The comparison: jaxprune, plain JAX and PyTorch do the same tasks in one run."""

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

from bench import ours, plain_jax, sizes
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
    "snip": 3 * sizes.IMAGES,
    "train_step": 3 * sizes.BATCH * sizes.STEPS,
    "evaluate": sizes.EVALUATED,
}
ONCE_S = 60  # a side whose first run takes longer is not run again
# Columns of the table: titles, and keys of a row with their formats.
COLUMNS = {
    "ours s": ("ours_s", ".4f"),
    "plain JAX s": ("plain_s", ".4f"),
    "plain / ours": ("plain_ratio", ".2f"),
    "PyTorch s": ("torch_s", ".4f"),
    "PyTorch / ours": ("ratio", ".2f"),
    "ours MB": ("ours_rss_mb", ".0f"),
    "plain JAX MB": ("plain_rss_mb", ".0f"),
    "PyTorch MB": ("torch_rss_mb", ".0f"),
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
    """Time each task in jaxprune, plain JAX and PyTorch, interleaved; print medians.

    Plain JAX runs without the XLA flags and the compilation cache of jaxprune's scripts.
    A side whose first run takes over a minute is not run again: that run also compiles.
    Without PyTorch, the other two sides are compared.

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
    sides = ["ours", "plain", "torch"]
    try:
        _cli.check_installed("torch")
    except ModuleNotFoundError as error:
        sides.remove("torch")
        print(
            f"Without PyTorch's columns: {_cli.missing_extra(error)}", file=sys.stderr
        )
    if to is not None:
        _cli.check_writable(to)
    os.sched_setaffinity(0, cores[:threads])  # inherited by every subprocess
    os.environ["OMP_NUM_THREADS"] = str(threads)
    machine = _machine(sides, threads)
    rows = []
    for task in track(tasks, "timing", console=Console(stderr=True), transient=True):
        rows.append(_row(task, sides, repeats))
        if to is not None:  # after each task, so that no measurement is lost
            result = {"machine": machine, "repeats": repeats, "rows": rows}
            _cli.write_text(to, json.dumps(result, indent=1) + "\n")
    _print(rows, machine)


def _machine(sides: Sequence[str], threads: int) -> dict[str, Any]:
    """Describe the machine, and measure its fastest matrix product and copy."""
    square, copied = jnp.ones((2048, 2048)), jnp.ones(2**26)
    dot = profiling.latency(jnp.dot, square, square, calls=5).p50
    copy = profiling.latency(jnp.copy, copied, calls=5).p50
    torch = {"torch": importlib.metadata.version("torch")} if "torch" in sides else {}
    return {
        **provenance.describe(),
        "threads": threads,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "plain_xla_flags": _environment("plain")["XLA_FLAGS"],
        **torch,
        "dot_gflops": 2 * len(square) ** 3 / dot / 1e9,
        "copy_gb_s": 2 * copied.nbytes / copy / 1e9,
    }


def _row(task: Task, sides: Sequence[str], repeats: int) -> dict[str, Any]:
    if task == "cold_start":
        timings = _cold_starts(sides, repeats)
    else:
        workers = {side: (side, task) for side in sides}
        if f"{task}_numpy" in plain_jax.TASKS:
            workers["plain_numpy"] = ("plain", f"{task}_numpy")
        timings = _interleaved(workers, repeats)
    row: dict[str, Any] = {"work": task}
    steps = sizes.STEPS if task == "train_step" else 1
    for side, (seconds, rss_mb) in timings.items():
        per_step = [one / steps for one in seconds]
        row |= {f"{side}_s": statistics.median(per_step), f"{side}_rss_mb": rss_mb}
        row[f"{side}_range_s"] = [min(per_step), max(per_step)]
        if task in PASSES:
            gflop = 2 * ours.macs(ours.vgg()) * PASSES[task] / 1e9
            row[f"{side}_gflops"] = gflop / statistics.median(seconds)
    row["plain_ratio"] = row["plain_s"] / row["ours_s"]
    if "torch" in sides:
        row["ratio"] = row["torch_s"] / row["ours_s"]
    return row


def _interleaved(
    workers: Mapping[str, Sequence[str]], repeats: int
) -> dict[str, Timing]:
    """Prepare each side in a subprocess, then let them run one after another."""
    processes: dict[str, subprocess.Popen] = {}
    seconds: dict[str, list[float]] = {}
    for side, worker in workers.items():
        processes[side] = _start(*worker, stdin=subprocess.PIPE)
        first = float(_read_line(processes[side]))  # compiled and warmed up
        seconds[side] = [first] if first > ONCE_S else []
    repeated = [side for side in workers if not seconds[side]]
    for _ in range(repeats):
        for side in repeated:
            process = processes[side]
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
            seconds[side].append(float(_read_line(process)))
    return {
        side: Timing(seconds[side], _finish(process))
        for side, process in processes.items()
    }


def _cold_starts(sides: Sequence[str], repeats: int) -> dict[str, Timing]:
    """Time whole processes, from the start of Python to the first result.

    Ours runs twice: with an empty compilation cache, and with the cache of the first start.
    """
    seconds: dict[str, list[float]] = {
        side: [] for side in ("ours", "ours_again", *sides[1:])
    }
    peaks: dict[str, list[float]] = {side: [] for side in seconds}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for side in seconds:
                start = time.perf_counter()
                process = _start(
                    side.split("_")[0],
                    "cold_start",
                    stdin=subprocess.DEVNULL,
                    cache=cache,
                )
                _read_line(process)
                seconds[side].append(time.perf_counter() - start)
                peaks[side].append(_finish(process))
    return {side: Timing(seconds[side], max(peaks[side])) for side in seconds}


def _environment(side: str) -> dict[str, str]:
    """Return the environment of a side.

    Plain JAX gets neither the XLA flags nor the compilation cache of `_cli`. Like the other
    sides, it does not reserve memory of the GPU that they share.
    """
    if side != "plain":
        return dict(os.environ)
    flags = os.environ.get("XLA_FLAGS", "").replace(_cli.CPU_FLAGS, "").strip()
    off = {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {**os.environ, **off}


def _start(
    side: str, task: str, *, stdin: int, cache: str | None = None
) -> subprocess.Popen:
    variables = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": cache}
    return subprocess.Popen(
        [sys.executable, "-m", "bench.worker", side, task],
        cwd=Path(__file__).parents[1],
        env={**_environment(side), **variables},
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
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
    columns = {title: of for title, of in COLUMNS.items() if of[0] in rows[0]}
    table = Table("task", box=box.MARKDOWN)
    for title in columns:
        table.add_column(title, justify="right")
    for row in rows:
        cells = (format(row[key], style) for key, style in columns.values())
        table.add_row(row["work"], *cells)
    console = Console(width=140)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in rows:
        others = [
            name
            for name in row
            if ("numpy" in name or "again" in name or "gflops" in name)
            and not isinstance(row[name], list)
        ]
        if others:
            figures = ", ".join(f"{name} {row[name]:.3g}" for name in others)
            console.print(f"{row['work']}: {figures}")
