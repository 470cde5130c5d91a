"""Time jaxprune beside PyTorch doing the same work, in one run.

python scripts/bench.py                                    # everything; extra `bench`
python scripts/bench.py --only select snip --json bench.json
python scripts/bench.py scaling     # time against parameters and cells, with a figure
python scripts/bench.py epoch       # what an accelerator makes of training
"""

import _cli

import importlib.metadata  # isort: skip
import importlib.util  # isort: skip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import _bench_ours
import jax.numpy as jnp
import tyro
from _bench_epoch import epoch
from _bench_scaling import scaling
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxprune import profiling
from jaxprune.study import provenance

WORKER = Path(__file__).with_name("_bench_worker.py")
WORKS = (
    "snip",
    "grasp",
    "synflow_1",
    "synflow_100",
    "select",
    "train_step",
    "evaluate",
    "imp_level",
    "cold_start",
)
# Passes over the network and pictures of a call, a backward pass being worth two forward.
PASSES = {
    "snip": 3 * _bench_ours.PICTURES,
    "train_step": 3 * _bench_ours.BATCH * _bench_ours.STEPS,
    "evaluate": _bench_ours.EVALUATED,
}


class Timed(NamedTuple):
    """Seconds of every call, and the most memory the process held, in MB (1e6 bytes)."""

    seconds: Sequence[float]
    rss_mb: float


def compare(
    only: tuple[str, ...] = WORKS,
    repeats: int = 5,
    threads: int | None = None,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Time each work on both sides in turn, and print medians and their ratios.

    Args:
        only: works to time.
        repeats: of each work on each side, the two taking turns.
        threads: processor cores that each side may use; all without it.
        to: file to write the same to.
    """
    unknown = [work for work in only if work not in WORKS]
    if unknown or not only:
        raise ValueError(
            f"--only is works to time; got {', '.join(unknown) or 'none'}. Pass some of "
            f"{' '.join(WORKS)}."
        )
    cores = sorted(os.sched_getaffinity(0))
    if repeats < 1 or not 1 <= (len(cores) if threads is None else threads) <= len(
        cores
    ):
        raise ValueError(
            f"--repeats is 1 or more and --threads 1 to {len(cores)} here; got {repeats} "
            f"and {threads}."
        )
    if importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch is not there to compare. Run: pip install '.[bench]'")
    if to is not None:
        _cli.check_writable(to)
    os.sched_setaffinity(0, cores[:threads])  # inherited by every process started here
    os.environ["OMP_NUM_THREADS"] = str(len(cores[:threads]))
    machine = _machine(len(cores[:threads]))
    rows = []
    for work in track(only, "timing", console=Console(stderr=True), transient=True):
        rows.append(_row(work, repeats))
        if to is not None:  # after each, so that nothing measured is lost
            found = {"machine": machine, "repeats": repeats, "rows": rows}
            _cli.write_text(to, json.dumps(found, indent=1) + "\n")
    _print(rows, machine)


def _machine(threads: int) -> dict[str, Any]:
    """Say what was measured on, and how fast it multiplies and copies at best."""
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


def _row(work: str, repeats: int) -> dict[str, Any]:
    if work == "cold_start":
        timed = _cold(repeats)
    else:
        calls = {"ours": ("ours", work), "torch": ("torch", work)}
        if work == "select":
            calls["jnp_sort"] = ("ours", "sort")
        timed = _in_turn(calls, repeats)
    row: dict[str, Any] = {"work": work}
    steps = _bench_ours.STEPS if work == "train_step" else 1
    for side, (seconds, rss_mb) in timed.items():
        each = [one / steps for one in seconds]
        row |= {f"{side}_s": statistics.median(each), f"{side}_rss_mb": rss_mb}
        row[f"{side}_range_s"] = [min(each), max(each)]
        if work in PASSES:
            gflop = 2 * _bench_ours.macs() * PASSES[work] / 1e9
            row[f"{side}_gflops"] = gflop / statistics.median(seconds)
    row["ratio"] = row["torch_s"] / row["ours_s"]
    return row


def _in_turn(calls: Mapping[str, Sequence[str]], repeats: int) -> dict[str, Timed]:
    """Prepare every side in a process of its own, then let them work one after another."""
    processes = {
        side: _start(*call, stdin=subprocess.PIPE) for side, call in calls.items()
    }
    for process in processes.values():
        _read(process)  # "ready": compiled and warmed up
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(repeats):
        for side, process in processes.items():
            assert process.stdin is not None
            print("go", file=process.stdin, flush=True)
            seconds[side].append(float(_read(process)))
    return {
        side: Timed(seconds[side], _end(process)) for side, process in processes.items()
    }


def _cold(repeats: int) -> dict[str, Timed]:
    """Time whole processes, from the start of Python to the first result.

    Ours twice: without the compilations of an earlier start, and with those of the first.
    """
    seconds: dict[str, list[float]] = {"ours": [], "ours_again": [], "torch": []}
    held: dict[str, list[float]] = {side: [] for side in seconds}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as compiled:
            for side in seconds:
                began = time.perf_counter()
                process = _start(
                    side.split("_")[0],
                    "cold_start",
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": compiled},
                )
                _read(process)
                seconds[side].append(time.perf_counter() - began)
                held[side].append(_end(process))
    return {side: Timed(seconds[side], max(held[side])) for side in seconds}


def _start(side: str, work: str, **options: Any) -> subprocess.Popen:
    command = [sys.executable, str(WORKER), side, work]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def _read(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    said = process.stdout.readline()
    if not said:
        raise RuntimeError(f"{process.args} failed; its words are above.")
    return said


def _end(process: subprocess.Popen) -> float:
    """Let it end, and return the most memory it held, in MB."""
    if process.stdin is not None:
        process.stdin.close()
    held = float(_read(process))
    process.wait()
    return held


def _print(rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    table = Table(box=box.MARKDOWN)
    for name in (
        "work",
        "ours s",
        "PyTorch s",
        "PyTorch / ours",
        "ours MB",
        "PyTorch MB",
    ):
        table.add_column(name, justify="left" if name == "work" else "right")
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
        rest = [
            name
            for name in row
            if ("jnp" in name or "again" in name or "gflops" in name)
            and not isinstance(row[name], list)
        ]
        if rest:
            figures = ", ".join(f"{name} {row[name]:.3g}" for name in rest)
            console.print(f"{row['work']}: {figures}")


if __name__ == "__main__":
    if [*sys.argv, "--only"][1].startswith("--") and "--help" not in sys.argv:
        sys.argv.insert(1, "compare")  # the main job needs no name
    _cli.main([compare, scaling, epoch], __doc__ or "")
