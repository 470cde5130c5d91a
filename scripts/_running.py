"""What `study.py run` does and prints: the plan, a progress bar, and a line for each cell."""

import _cli

import os  # isort: skip
import sys  # isort: skip
from pathlib import Path  # isort: skip

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxprune.study import cluster, config, runner, stages, store, workbench
from jaxprune.study.records import Record
from jaxprune.study.stages import KINDS

console = Console()


def print_plan(
    study: config.Study, planned: runner.Plan, source: workbench.Source
) -> None:
    """Print the stages of every cell, and how long training them takes here."""
    for cell in study.cells:
        chain = stages.chain(cell)
        names = [
            f"{stage.id}{' (done)' if stage.id in planned.finished else ''}"
            for stage in chain
        ]
        epochs = sum(stages.epochs(stage) for stage in chain)
        console.print(
            f"{config.cell_id(cell)}: {epochs:g} epochs; {' > '.join(names)}",
            soft_wrap=True,
            highlight=False,
        )
    if not planned.epochs:
        return
    console.print(
        "Timing an epoch, which takes minutes for a large network on a CPU ..."
    )
    epoch = runner.epoch_time(study, source)
    console.print(
        f"An epoch takes {epoch.seconds:,.2f} s here (timed on {epoch.timed} of its "
        f"{epoch.steps} steps), so the remaining training takes "
        f"{epoch.seconds * planned.epochs / 3600:,.2f} h. Scoring, evaluation and timing "
        "take extra time.",
        highlight=False,
    )


def progress_bar() -> Progress:
    """Return a bar of epochs; without a terminal it prints nothing."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=False),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def run_on_ray(
    study: config.Study,
    runs_dir: Path,
    source: workbench.Source,
    bar: Progress,
    cpus: int,
) -> None:
    """Run the stages in workers on a Ray cluster; show how many epochs are done."""
    planned = runner.plan(study, runs_dir / study.name)
    trained = [s for s in planned.stages if stages.epochs(s)]
    task = bar.add_task("workers on Ray", total=round(sum(map(stages.epochs, trained))))

    def on_wait() -> None:
        done = [s for s in trained if store.is_finished(runs_dir / study.name, s)]
        bar.update(task, completed=sum(map(stages.epochs, done)))

    address = os.environ.get("RAY_ADDRESS")
    # Workers import the user's file, and the modules beside it.
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**_cli.environment(), "PYTHONPATH": paths}
    workers = cluster.Cluster(cpus, environment, address)
    cluster.run(study, runs_dir, source, workers, on_wait)
    bar.remove_task(task)


def run(
    study: config.Study,
    runs_dir: Path,
    source: workbench.Source,
    bar: Progress,
    mesh_shape: tuple[int, int] | None,
) -> None:
    """Run the cells; print a line for each when it is trained, or was finished before."""
    left = runner.plan(study, runs_dir / study.name).epochs
    task = bar.add_task("starting", total=round(left))
    printed: set[str] = set()
    measuring: list[bool] = []

    def print_once(record: Record) -> None:
        if record.id not in printed:
            printed.add(record.id)
            text = f"[{len(printed)}/{len(study.cells)}] {summary(record)}"
            console.print(text, highlight=False, markup=False)

    def show(now: runner.Progress) -> None:
        epoch = f" epoch {now.epoch}" if now.history else ""
        text = f"[{now.cell}/{now.cells}] {now.label}: {now.stage.kind}{epoch}"
        bar.update(task, completed=now.done_epochs, description=text)
        if now.record is not None:
            print_once(now.record)
        elif KINDS[now.stage.kind].is_timed and not measuring:
            measuring.append(True)
            console.print("measuring time and memory, one cell after another")

    finished = runner.run(study, runs_dir, source, show, mesh_shape)
    for number, record in enumerate(finished, start=1):
        print_once(record)
        if not console.is_terminal and number % 10 == 0:
            console.print(f"{number} of {len(study.cells)} cells are measured")


def summary(record: Record) -> str:
    """Return the result of a cell in one line."""
    if record.status == "diverged":
        return f"{record.label}: diverged"
    collapsed = ", collapsed" if record.collapse else ""
    result = (
        f"error barrier {record.connectivity['barrier']:.2f} points"
        if record.metric is None
        else f"{record.metric:.2f} %"
        if record.metric_unit == "%"
        else f"{record.metric_name} {record.metric:.4g} {record.metric_unit}".strip()
    )
    return f"{record.label}: {result}{collapsed} ({record.seconds:.1f} s)"
