"""Run a study, see how far it is, and write its report.

python scripts/study.py run digits
python scripts/study.py run digits --only method=snip,synflow c=1 --seeds 3
python scripts/study.py status digits
python scripts/study.py report digits
"""

import _cli

from pathlib import Path  # isort: skip
from typing import Annotated  # isort: skip

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments import STUDIES
from jaxprune import data
from jaxprune.study import config, executors, records, runner, stages
from jaxprune.study.records import Record

Name = Annotated[str, tyro.conf.Positional]
console = Console()


def _study(
    name: str, only: tuple[str, ...], seeds: int, data_dir: Path | None, cache_dir: Path
) -> tuple[config.Study, data.Found]:
    _check_name(name)
    if seeds < 1:
        raise ValueError(
            f"--seeds is how many seeds to run; got {seeds}. Pass 1 or more."
        )
    found = data.find(STUDIES[name].dataset, data_dir=data_dir, cache_dir=cache_dir)
    study = STUDIES[name].study(found, seeds)
    return study._replace(cells=config.select_cells(study.cells, only)), found


def _check_name(name: str) -> None:
    if name not in STUDIES:
        raise ValueError(
            f"study '{name}' is not known. Pass one of {', '.join(STUDIES)}."
        )


def run(
    name: Name,
    /,
    only: tuple[str, ...] = (),
    seeds: int = 1,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    cache_dir: Path = _cli.CACHE / "data",
    executor: str = "local",
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run the cells of a study that are not finished yet, then write its report.

    Args:
        name: the study, such as digits.
        only: conditions that cells must meet, such as method=snip,synflow c=1.
        seeds: how many seeds; more than one gives mean ± standard deviation.
        runs_dir: where results are kept; run again with the same folder to resume.
        data_dir: folder of prepared TFDS data sets; TFDS's own default without it.
        cache_dir: folder of decoded data sets.
        executor: where cells run.
        dry_run: print cells, stages and savings, and run nothing.
    """
    study, found = _study(name, only, seeds, data_dir, cache_dir)
    if executor not in executors.EXECUTORS:
        raise ValueError(
            f"executor '{executor}' is not known. Pass one of "
            f"{', '.join(executors.EXECUTORS)}."
        )
    plan = runner.plan(study, runs_dir / name)
    console.print(
        f"{len(study.cells)} cells in {len(plan.stages)} stages "
        f"({len(plan.cells_done)} cells and {len(plan.finished)} stages are done). "
        f"{plan.epochs:g} epochs to train; sharing saves {plan.shared:g} of "
        f"{plan.alone:g}.",
        highlight=False,
    )
    if dry_run:
        _print_plan(study, plan)
        return
    _run(study, runs_dir, found, plan, executors.EXECUTORS[executor])
    try:
        from jaxprune.report import build, tables, write
    except ImportError as error:
        console.print(
            f"no report: {error.name} is not installed; the records are whole"
        )
        return
    index = write(runs_dir / name)
    table = build(records.read_all(runs_dir / name), "accuracy")
    console.print(tables.terminal(table))
    console.print(f"The report is in {index}", soft_wrap=True, highlight=False)


def _print_plan(study: config.Study, plan: runner.Plan) -> None:
    for cell in study.cells:
        chain = stages.chain(cell)
        names = [
            f"{stage.id}{' (done)' if stage.id in plan.finished else ''}"
            for stage in chain
        ]
        epochs = sum(stages.epochs(stage) for stage in chain)
        console.print(
            f"{config.cell_id(cell)}: {epochs:g} epochs; {' > '.join(names)}",
            soft_wrap=True,
            highlight=False,
        )


def _run(
    study: config.Study,
    runs_dir: Path,
    found: data.Found,
    plan: runner.Plan,
    executor: executors.Executor,
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=round(plan.epochs))

        def tell(now: runner.Progress) -> None:
            epoch = f" epoch {now.epoch}" if now.history else ""
            bar.update(
                task,
                completed=now.done_epochs,
                description=f"[{now.cell}/{now.cells}] {now.label}: {now.stage}{epoch}",
            )

        done = runner.run(study, runs_dir, found, tell, executor)
        for number, record in enumerate(done, start=1):
            console.print(
                f"[{number}/{len(study.cells)}] {_line(record)}",
                highlight=False,
                markup=False,
            )


def _line(record: Record) -> str:
    where = (
        f"{record.title} c={record.cell['compression']:g} seed {record.cell['seed']}"
    )
    if record.status == "diverged":
        return f"{where}: diverged"
    collapsed = ", collapsed" if record.collapse else ""
    return (
        f"{where}: {record.accuracy:.2f} % at density {record.density:.4f}"
        f"{collapsed} ({record.seconds:.1f} s)"
    )


def status(name: Name, /, runs_dir: Path = Path("runs")) -> None:
    """List which cells of a study are done.

    Args:
        name: the study, such as digits.
        runs_dir: where its results are kept.
    """
    _check_name(name)
    folder = runs_dir / name
    listed = records.read_study(folder)["cells"]
    finished = {record.id: record for record in records.read_all(folder)}
    for cell in listed:
        record = finished.get(cell["id"])
        line = "not finished" if record is None else _line(record)
        console.print(f"{cell['id']}: {line}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(finished)} of {len(listed)} cells are finished.", highlight=False
    )


def report(name: Name, /, runs_dir: Path = Path("runs")) -> None:
    """Write the report of what is finished, and print its tables.

    Args:
        name: the study, such as digits.
        runs_dir: where its results are kept.
    """
    from jaxprune.report import TABLES, build, tables, write

    _check_name(name)
    index = write(runs_dir / name)
    found = records.read_all(runs_dir / name)
    for table in TABLES:
        console.print(tables.terminal(build(found, table)))
    console.print(f"The report is in {index}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    _cli.main([run, status, report], __doc__ or "")
