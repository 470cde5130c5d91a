"""A whole study: seconds per cell, time to the first result, programs compiled."""

import _cli

import collections  # isort: skip
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import psutil
import tyro
from rich.console import Console

from experiments import STUDIES
from jaxprune import data
from jaxprune.study import config, provenance, runner, select, stages, store

# What JAX reports for every program that it compiles or reads from its cache on disk.
_COMPILED = "/jax/core/compile/backend_compile_duration"


def study(
    only: tuple[str, ...] = (),
    warm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Run the study of digits in a new folder. Run nothing else meanwhile.

    Args:
        only: conditions that cells must meet, such as method=snip,synflow c=1.
        warm: use the programs that earlier runs compiled, instead of compiling all.
        to: file to write the measurements to.
    """
    if to is not None:
        _cli.check_writable(to)
    dataset_files = data.find("digits", cache_dir=_cli.CACHE / "data")
    whole = STUDIES["digits"].study(dataset_files)
    digits = whole._replace(cells=select.select_cells(whole.cells, only))
    compiled: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        if not warm:
            jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")

        def on_event(event: str, duration_secs: float, **_: Any) -> None:
            if event == _COMPILED:
                compiled.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(on_event)
        result = _run(digits, Path(folder), dataset_files)
    result |= {"programs": len(compiled), "compiling_s": sum(compiled), "warm": warm}
    if to is not None:
        machine = provenance.describe()
        _cli.write_text(to, json.dumps({"machine": machine, **result}, indent=1) + "\n")
    Console(width=100).print_json(data=result)


def _run(
    digits: config.Study, folder: Path, dataset_files: data.DatasetFiles
) -> dict[str, Any]:
    trained: list[float] = []

    def on_progress(now: runner.Progress) -> None:
        if now.record is not None:
            trained.append(time.time())

    start = time.time()
    cells = len(list(runner.run(digits, folder, dataset_files, on_progress)))
    end = time.time()
    by_kind: dict[str, float] = collections.defaultdict(float)
    chains = [stages.chain(cell) for cell in digits.cells]
    for stage in {stage.id: stage for chain in chains for stage in chain}.values():
        finished = store.read(folder / digits.name, stage)
        by_kind[stage.kind] += finished.seconds if finished else 0.0
    return {
        "cells": cells,
        "first_result_s": trained[0] - psutil.Process().create_time(),
        "training_s": trained[-1] - start,
        "measuring_s": end - trained[-1],
        "seconds_per_cell": (end - start) / cells,
        "stages_s": {kind: round(seconds, 2) for kind, seconds in by_kind.items()},
    }
