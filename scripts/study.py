"""Run a study, see how far it is, and write its report.

python scripts/study.py run digits
python scripts/study.py run digits --only method=snip,synflow c=1 --seeds 3
python scripts/study.py status digits
python scripts/study.py report digits
python scripts/study.py check poster --recipe as_run
"""

import _cli

import os  # isort: skip
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
from jaxprune.study import cluster, config, executors, records, runner, stages
from jaxprune.study.records import Record

Name = Annotated[str, tyro.conf.Positional]
console = Console()


def _folder(name: str, recipe: str | None, runs_dir: Path) -> Path:
    """Return where the study's results are: runs/<name>, or runs/<name>-<recipe>."""
    if name not in STUDIES:
        raise ValueError(
            f"study '{name}' is not known. Pass one of {', '.join(STUDIES)}."
        )
    recipes = list(STUDIES[name].recipes)
    if recipe is not None and recipe not in recipes:
        raise ValueError(
            f"recipe '{recipe}' is not known to {name}. Pass one of {', '.join(recipes)}."
        )
    several = len(recipes) > 1
    return runs_dir / (f"{name}-{recipe or recipes[0]}" if several else name)


def run(
    name: Name,
    /,
    only: tuple[str, ...] | None = None,
    seeds: int = 1,
    recipe: str | None = None,
    epochs_scale: float = 1.0,
    width: float | None = None,
    train_examples: int | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    cache_dir: Path = _cli.CACHE / "data",
    executor: str = "local",
    cpus: int = 1,
    mesh: str | None = None,
    plan: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Run the cells of a study that are not finished yet, then write its report.

    Args:
        name: the study: digits, poster or imp_curve.
        only: conditions that cells must meet, such as method=snip,synflow c=1.
        seeds: how many seeds; more than one gives mean ± standard deviation.
        recipe: of poster, as_run or corrected.
        epochs_scale: factor on all epochs, for a reduced run.
        width: factor on the number of channels, for a reduced run.
        train_examples: train on the first so many pictures, for a reduced run.
        runs_dir: where results are kept; run again with the same folder to resume.
        data_dir: folder of prepared TFDS data sets; TFDS's own default without it.
        cache_dir: folder of decoded data sets.
        executor: where stages run: local, in this process; or ray, on a cluster whose
            address is in RAY_ADDRESS (without it, one on this machine).
        cpus: of a stage on a cluster without GPUs.
        mesh: devices that share the work of a stage, such as data=8 or data=4,model=2.
        plan: print cells, stages and savings, time some steps of training and print how
            long all would take; run nothing.
    """
    folder = _folder(name, recipe, runs_dir)
    if not 1 <= seeds <= 1000:
        raise ValueError(
            f"--seeds is how many seeds to run, 1 to 1000; got {seeds}. Pass 3, say."
        )
    if only is not None and not only:
        raise ValueError(
            "--only has no condition. Write some, such as method=snip,synflow or c=1."
        )
    preset = STUDIES[name]
    found = data.find(preset.dataset, data_dir=data_dir, cache_dir=cache_dir)
    whole = preset.study(found, seeds, recipe)
    study = config.reduced(
        whole._replace(cells=config.select_cells(whole.cells, only or ())),
        epochs_scale=epochs_scale,
        width=width,
        train_examples=train_examples,
    )
    if executor not in ("local", "ray"):
        raise ValueError(
            f"--executor '{executor}' is not known. Pass one of local, ray."
        )
    shape = None if mesh is None else _mesh(mesh)
    run_cells = executors.local
    if executor == "ray":
        if shape is not None:
            raise ValueError(
                "--mesh takes the devices of this process, and --executor ray runs stages in "
                "others, with one GPU each. Leave out one of the two."
            )
        address = os.environ.get("RAY_ADDRESS")
        run_cells = cluster.executor(cpus, _cli.environment(), address)
    for note in study.notes:
        console.print(note, highlight=False, markup=False)
    planned = runner.plan(study, folder)
    console.print(
        f"{len(study.cells)} cells in {len(planned.stages)} stages "
        f"({len(planned.cells_done)} cells and {len(planned.finished)} stages are done). "
        f"{planned.epochs:g} epochs to train; sharing saves {planned.shared:g} of "
        f"{planned.unshared:g}.",
        highlight=False,
    )
    if planned.unlisted:
        console.print(
            f"{planned.unlisted} finished cells of {folder} have another recipe or size. "
            "They stay there, but status and report list them no longer: pass another "
            "--runs-dir to see both.",
            highlight=False,
            markup=False,
        )
    if plan:  # a run checks by itself
        runner.check(planned, found, shape)
        _print_plan(study, planned, found)
        return
    _run(study, runs_dir, found, planned, run_cells, shape)
    try:
        _report(name, folder, tables=1)
    except ImportError as error:
        console.print(
            f"no report: {error.name} is not installed; the records are whole"
        )


def _mesh(text: str) -> tuple[int, int]:
    """Read data=4,model=2."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        known = name in ("data", "model") and name not in sizes
        if not (known and number.isascii() and number.isdecimal()):
            raise ValueError(
                f"--mesh '{text}' is not understood. Write data=8 or data=4,model=2."
            )
        sizes[name] = int(number)
    return sizes.get("data", 1), sizes.get("model", 1)


def _report(name: str, folder: Path, tables: int | None = None) -> None:
    """Write the report, and print the first so many tables of it."""
    from jaxprune import report

    published = STUDIES[name].published()
    index = report.write(folder, published)
    notes = records.read_study(folder)["notes"]
    built = report.build_all(records.read_all(folder), notes, published)
    for table in built[:tables]:
        console.print(report.terminal(table))
    console.print(
        f"The report is in {index}", soft_wrap=True, highlight=False, markup=False
    )


def _print_plan(study: config.Study, planned: runner.Plan, found: data.DatasetFiles) -> None:
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
        "timing an epoch, which takes minutes for a large network on a CPU ..."
    )
    epoch = runner.epoch_time(study, found)
    console.print(
        f"An epoch takes {epoch.seconds:,.2f} s here (timed on {epoch.timed} of its "
        f"{epoch.steps} steps), so what is left of training takes "
        f"{epoch.seconds * planned.epochs / 3600:,.2f} h; scoring, evaluation and timing "
        "come on top.",
        highlight=False,
    )


def _run(
    study: config.Study,
    runs_dir: Path,
    found: data.DatasetFiles,
    planned: runner.Plan,
    executor: executors.Executor,
    mesh: tuple[int, int] | None,
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
        task = bar.add_task("starting", total=round(planned.epochs))

        def tell(now: runner.Progress) -> None:
            epoch = f" epoch {now.epoch}" if now.history else ""
            bar.update(
                task,
                completed=now.done_epochs,
                description=f"[{now.cell}/{now.cells}] {now.label}: {now.stage}{epoch}",
            )

        done = runner.run(study, runs_dir, found, tell, executor, mesh)
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
    found = (
        f"error barrier {record.connectivity['barrier']:.2f} points"
        if record.accuracy is None
        else f"{record.accuracy:.2f} %"
    )
    return (
        f"{where}: {found} at density {record.density:.4f}{collapsed} "
        f"({record.seconds:.1f} s)"
    )


def status(
    name: Name, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """List which cells of a study are done.

    Args:
        name: the study: digits, poster or imp_curve.
        recipe: of poster, as_run or corrected.
        runs_dir: where its results are kept.
    """
    folder = _folder(name, recipe, runs_dir)
    listed = records.read_study(folder)["cells"]
    finished = {record.id: record for record in records.read_all(folder)}
    for cell in listed:
        record = finished.get(cell["id"])
        line = "not finished" if record is None else _line(record)
        console.print(
            f"{cell['id']}: {line}", highlight=False, soft_wrap=True, markup=False
        )
    console.print(
        f"{len(finished)} of {len(listed)} cells are finished.", highlight=False
    )


def report(
    name: Name, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """Write the report of what is finished, and print its tables.

    Args:
        name: the study: digits, poster or imp_curve.
        recipe: of poster, as_run or corrected.
        runs_dir: where its results are kept.
    """
    _report(name, _folder(name, recipe, runs_dir))


def check(
    name: Name, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """Compare a study with what was published; exit code 1 if something differs.

    Args:
        name: the study; only poster has something published beside it.
        recipe: as_run or corrected, whose records are compared.
        runs_dir: where its results are kept; without any, what needs no data is compared.
    """
    folder = _folder(name, recipe, runs_dir)
    compare = STUDIES[name].check
    if compare is None:
        known = [name for name, preset in STUDIES.items() if preset.check]
        raise ValueError(
            f"nothing is published beside {name}. Pass one of {', '.join(known)}."
        )
    found = records.read_all(folder) if (folder / "study.json").exists() else []
    differing = 0
    for finding in compare(found):
        differing += not finding.holds
        console.print(
            f"{'ok     ' if finding.holds else 'DIFFERS'} {finding.what}: "
            f"{finding.got:.10g}, expected {finding.expected:.10g} ± {finding.tolerance:g}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{differing} differ; {len(found)} records in {folder}, of which those of reduced "
        "runs are not compared",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    _cli.main([run, status, report, check], __doc__ or "")
