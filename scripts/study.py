"""Run a study, list its finished cells, and write its report.

Examples:
    python scripts/study.py list
    python scripts/study.py run digits
    python scripts/study.py run digits --method snip grasp --density 0.2 0.05
    python scripts/study.py run experiments/own_study.py
    python scripts/study.py run digits --only method=snip,synflow density=0.1 --seeds 3
    python scripts/study.py status digits
    python scripts/study.py report digits
    python scripts/study.py check poster --recipe as_run
"""

import _cli

import ast  # isort: skip
import functools  # isort: skip
import os  # isort: skip
from pathlib import Path  # isort: skip
from typing import Annotated, Any, Literal  # isort: skip

import _running
import tyro
from _running import console

import experiments
from experiments import STUDIES
from jaxprune import data
from jaxprune.study import (
    archive,
    config,
    methods,
    records,
    runner,
    select,
    user,
    workbench,
)

StudyName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(STUDIES)},FILE.py}}")
]
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


_user_study = functools.cache(user.load)  # run the file once


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _file(name: str) -> Path:
    """Return the file of a built-in study."""
    return Path(experiments.__file__ or "").with_name(f"{name}.py")


def _name(name: str) -> str:
    """Return the name of a built-in study, also for the path of its file."""
    own = (key for key, preset in STUDIES.items() if preset.dataset is None)
    paths = {_file(key).resolve(): key for key in own}
    return paths.get(Path(name).resolve(), name)


def _load(
    name: str, recipe: str | None, seeds: int, data_dir: Path | None, cache_dir: Path
) -> tuple[config.Study, workbench.Source]:
    """Load a study by its name or from a user's file, and find its data."""
    if _is_file(name):
        return _user_study(Path(name)).build(seeds)
    preset = STUDIES[name]
    if preset.dataset is None:
        return preset.study(seeds)
    files = data.find(preset.dataset, data_dir=data_dir, cache_dir=cache_dir)
    return preset.study(files, seeds, recipe), files


def _folder(name: str, recipe: str | None, runs_dir: Path) -> Path:
    """Return the folder of a study: runs/<name>, or runs/<name>-<recipe>."""
    if not _is_file(name) and name not in STUDIES:
        raise ValueError(
            f"study '{name}' is unknown. Pass one of {', '.join(STUDIES)}, or the path of a "
            "study's file, which ends in .py."
        )
    recipes = [] if _is_file(name) else list(STUDIES[name].recipes)
    if recipe is not None and not recipes:
        raise ValueError(
            f"--recipe chooses among those of a built-in study, and {name} has its own. "
            "Leave it out."
        )
    if _is_file(name):
        return runs_dir / _user_study(Path(name)).name
    if recipe is not None and recipe not in recipes:
        raise ValueError(
            f"recipe '{recipe}' of {name} is unknown. Pass one of {', '.join(recipes)}."
        )
    has_choice = len(recipes) > 1
    return runs_dir / (f"{name}-{recipe or recipes[0]}" if has_choice else name)


def run(
    name: StudyName,
    /,
    only: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = (),
    method: tuple[str, ...] = (),
    density: tuple[float, ...] = (),
    seeds: int = 1,
    recipe: str | None = None,
    epochs_scale: float = 1.0,
    width: float | None = None,
    train_examples: int | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    cache_dir: Path = _cli.CACHE / "data",
    executor: Literal["local", "ray"] = "local",
    cpus: int = 1,
    mesh: str | None = None,
    plan: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    pack: Path | None = None,
) -> None:
    """Run the cells of a study that are not finished, then write its report.

    Args:
        name: study to run: its name, or the path of a file with STUDY = user.Study(...).
        only: conditions that cells must meet, such as method=snip,synflow c=1; fields are
            method, c, density, seed and model. Several --only add up.
        method: methods to compare, in place of those of the study; `list` shows all.
        density: fractions of the prunable weights to keep, in place of those of the study.
        seeds: number of seeds; with several, tables show mean ± standard deviation.
        recipe: one of those that `list` shows for the study; by default the first.
        epochs_scale: factor on all epochs, for a reduced run.
        width: factor on the number of channels, for a reduced run.
        train_examples: train on the first N examples only, for a reduced run.
        runs_dir: folder of the results; the same folder resumes.
        data_dir: folder of prepared TFDS data sets; by default that of TFDS.
        cache_dir: folder of decoded data sets.
        executor: where stages run: in this process, or in workers on the Ray cluster at
            RAY_ADDRESS (if unset, one is started on this machine).
        cpus: CPUs per worker on a Ray cluster without GPUs.
        mesh: devices that share the work of a stage, such as data=8 or data=4,model=2.
        plan: run nothing; print cells, stages and savings, time a few training steps and
            print how long the study takes.
        pack: run nothing; write the runs folder to this zip file, without the weights that
            no cell of the study needs any more (with or without --only). Unpacked
            elsewhere, it resumes there.
    """
    name = _name(name)
    folder = _folder(name, recipe, runs_dir)
    if not 1 <= seeds <= 1000:
        raise ValueError(
            f"--seeds is the number of seeds, 1 to 1000; got {seeds}. Pass a number "
            "such as 3."
        )
    conditions = [condition for group in only for condition in group]
    if only and not conditions:
        raise ValueError(
            "--only has no condition. Pass some, such as method=snip,synflow or c=1."
        )
    whole, source = _load(name, recipe, seeds, data_dir, cache_dir)
    names = [name for group in method for name in group.split(",")]
    full_study = select.vary(whole, methods=names, densities=density)
    at_size = functools.partial(
        select.reduced,
        epochs_scale=epochs_scale,
        width=width,
        train_examples=train_examples,
    )
    chosen = select.select_cells(full_study.cells, conditions)
    study = at_size(full_study._replace(cells=chosen))
    mesh_shape = None if mesh is None else _mesh_shape(mesh)
    if cpus != 1 and executor == "local":
        raise ValueError(
            f"--cpus is for --executor ray; got --cpus {cpus}. Leave it out."
        )
    if executor == "ray" and mesh_shape is not None:
        raise ValueError(
            "--mesh uses the devices of this process, and --executor ray runs stages in "
            "other processes, with one GPU each. Leave out one of them."
        )
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
            f"{planned.unlisted} finished cells of {folder} have another recipe, size or "
            "function. They stay on disk, but status and report no longer list them. Pass "
            "another --runs-dir to keep both.",
            highlight=False,
            markup=False,
        )
    if pack is not None:
        left_out = archive.pack(study.name, at_size(full_study).cells, runs_dir, pack)
        console.print(
            f"packed {pack.stat().st_size / 1e6:,.1f} MB into {pack}; the weights of "
            f"{len(left_out)} stages that no cell needs any more are left out",
            **_PLAIN,
        )
        return
    if plan:  # runner.run does this check itself
        runner.check(planned, source, mesh_shape)
        _running.print_plan(study, planned, source)
        return
    try:
        with _running.progress_bar() as bar:
            if executor == "ray":
                _running.run_on_ray(study, runs_dir, source, bar, cpus)
            _running.run(study, runs_dir, source, bar, mesh_shape)
    except (ValueError, RuntimeError):
        if (folder / "study.json").exists() and records.read_all(folder):
            _try_report(name, folder)  # of the cells that did not fail
        raise
    _try_report(name, folder)


def _try_report(name: str, folder: Path) -> None:
    """Write the report, if its packages are installed."""
    try:
        _report(name, folder, tables=1)
    except ImportError as error:
        reason = _cli.missing_extra(error)
        if reason is None:
            raise
        console.print(
            f"The records are complete, but there is no report: {reason}",
            **_PLAIN,
        )


def _mesh_shape(text: str) -> tuple[int, int]:
    """Parse a text such as data=4,model=2."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        is_new_axis = name in ("data", "model") and name not in sizes
        if not (is_new_axis and number.isascii() and number.isdecimal()):
            raise ValueError(
                f"--mesh '{text}' is invalid. Pass sizes such as data=8 or data=4,model=2."
            )
        sizes[name] = int(number)
    return sizes.get("data", 1), sizes.get("model", 1)


def _report(name: str, folder: Path, tables: int | None = None) -> None:
    """Write the report, and print its first tables."""
    from jaxprune import report

    preset = STUDIES.get(name)  # None for a user's file
    published = preset.published() if preset else None
    index = folder / "report" / "index.html"
    if tables is None or not _is_current(folder, index):
        index = report.write(folder, published)
    notes = records.read_study(folder)["notes"]
    all_tables = report.build_all(records.read_all(folder), notes, published)
    for table in all_tables[:tables]:
        console.print(report.terminal(table, console.width))
    console.print(f"The report is in {index}", **_PLAIN)


def _is_current(folder: Path, index: Path) -> bool:
    """Return whether a report is newer than all records and the list of cells."""
    changed = [folder / "study.json", *folder.glob("*/record.json")]
    newest = max(path.stat().st_mtime for path in changed)
    return index.exists() and index.stat().st_mtime > newest


def list_() -> None:
    """List the built-in studies, and the methods that every study can compare."""
    console.print("Studies (python scripts/study.py run NAME):", highlight=False)
    for name, preset in STUDIES.items():
        about = ast.get_docstring(ast.parse(_file(name).read_text())) or ""
        recipes = (
            f"; recipes {', '.join(preset.recipes)}" if len(preset.recipes) > 1 else ""
        )
        dataset = f" Data set {preset.dataset}{recipes}." if preset.dataset else ""
        console.print(f"  {name}: {about.partition(chr(10))[0]}{dataset}", **_PLAIN)
    console.print(
        "  path/to/file.py: a study of your own, as in experiments/own_study.py.",
        **_PLAIN,
    )
    console.print("Methods (--method NAME ...):", highlight=False)
    for name, method in methods.METHODS.items():
        console.print(f"  {name}: {method.title}, {_explain(method)}.", **_PLAIN)


def _explain(method: methods.Method) -> str:
    """Describe a method in a few words."""
    if not method.prunes:
        return "the trained network without pruning"
    if method.sparse is not None:
        return f"sparse training by sparse_training.{method.sparse}"
    if method.reconstructs:
        return "layers are pruned and their weights reconstructed after training"
    if method.levels or method.keep_fraction:
        levels = f"{method.levels} levels" if method.levels else "20 % per level"
        twice = ", trained twice to measure the error barrier" if method.points else ""
        return f"iterative magnitude pruning, {levels}{twice}"
    when = "after" if method.pretrained else "before"
    details = [f"{method.rounds} rounds" * bool(method.rounds and method.rounds > 1)]
    details += ["pruned weights may return" * bool(method.regrow)]
    details += [f"compared by {method.scope}" * (method.scope != "global")]
    return ", ".join([f"{method.score} scores {when} training", *filter(None, details)])


def status(
    name: StudyName, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """List the cells of a study, and the results of those that are finished.

    Args:
        name: study to list.
        recipe: one of those that `list` shows for the study; by default the first.
        runs_dir: folder of the results.
    """
    name = _name(name)
    folder = _folder(name, recipe, runs_dir)
    listed = records.read_study(folder)["cells"]
    by_id = {record.id: record for record in records.read_all(folder)}
    for cell in listed:
        record = by_id.get(cell["id"])
        line = "not trained" if record is None else _running.summary(record)
        if record is not None and record.status == "trained":
            line += ", not measured yet"
        console.print(f"{cell['id']}: {line}", **_PLAIN)
    measured = sum(record.status != "trained" for record in by_id.values())
    trained = f"; {len(by_id)} are trained" if len(by_id) > measured else ""
    console.print(
        f"{measured} of {len(listed)} cells are finished{trained}.", highlight=False
    )


def report(
    name: StudyName, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """Write the report of the finished cells, and print its tables.

    Args:
        name: study to report.
        recipe: one of those that `list` shows for the study; by default the first.
        runs_dir: folder of the results.
    """
    name = _name(name)
    _report(name, _folder(name, recipe, runs_dir))


def check(
    name: StudyName, /, recipe: str | None = None, runs_dir: Path = Path("runs")
) -> None:
    """Compare a study with published numbers; exit code 1 if some differ or none is compared.

    Args:
        name: study to compare: poster or mnist1d, which have published numbers.
        recipe: that of the records to compare; by default the first of the study.
        runs_dir: folder of the results; without results, only the masks of poster are
            compared.
    """
    name = _name(name)
    folder = _folder(name, recipe, runs_dir)
    preset = STUDIES.get(name)
    compare = preset.check if preset else None
    if compare is None:
        comparable = [name for name, preset in STUDIES.items() if preset.check]
        raise ValueError(
            f"{name} has no published numbers. Pass one of {', '.join(comparable)}."
        )
    finished = records.read_all(folder) if (folder / "study.json").exists() else []
    compared = differing = 0
    for finding in compare(finished):
        compared += 1
        differing += not finding.agrees
        console.print(
            f"{'ok     ' if finding.agrees else 'DIFFERS'} {finding.quantity}: "
            f"{finding.value:.10g}, expected {finding.expected:.10g} ± "
            f"{finding.tolerance:g}",
            highlight=False,
            soft_wrap=True,
        )
    if not compared:
        console.print(
            f"Nothing was compared: {folder} has no finished networks of the full study. Run "
            f"python scripts/study.py run {name} first.",
            **_PLAIN,
        )
        raise SystemExit(1)
    console.print(
        f"{differing} differ; {len(finished)} records in {folder}, of which those of "
        "reduced runs are not compared",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    _cli.main([run, list_, status, report, check], __doc__ or "")
