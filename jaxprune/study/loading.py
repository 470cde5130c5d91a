"""From the files of a cell to its network."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxprune import checkpoint, masks, models
from jaxprune.disk import CorruptFileError
from jaxprune.study import files, records, settings, user, workbench
from jaxprune.study.code import Code
from jaxprune.study.files import RunsError
from jaxprune.types import Mask, Params


def load_cell(
    folder: str | os.PathLike, cell_id: str, study: Any
) -> tuple[models.Model, Params, Any, Mask, records.Record]:
    """Load the model, params, state, mask and record of a cell; see `study.load_cell`."""
    if not isinstance(cell_id, str):
        raise TypeError(
            f"cell_id is a {type(cell_id).__name__}. Pass an id that `study.py status` lists."
        )
    place = Path(folder)
    if (place / "study.json").exists():
        with contextlib.suppress(CorruptFileError):
            records.read_study(place)  # refuses another version
    try:
        record = records.read(place / cell_id / "record.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunsError(
            f"{place} has no trained cell '{cell_id}'. Run the study first, and pass an id "
            "that `study.py status` lists."
        ) from error
    arrays, network = _arrays(place, record)
    if network.model not in models.MODELS:
        network = dataclasses.replace(
            network, model=_own_model(cell_id, network, study)
        )
    model, mask = workbench.model(network, arrays), workbench.mask_of(arrays)
    model = dataclasses.replace(model, params=masks.apply(model.params, mask))
    return model, model.params, model.state, mask, record


def _own_model(cell_id: str, network: settings.Network, study: Any) -> Code:
    """Return the model of a user's study, if it is the one that was trained."""
    if isinstance(study, str | os.PathLike):
        study = user.load(Path(study))
    if not isinstance(study, user.Study):
        raise RunsError(
            f"the cell '{cell_id}' has a model of a user's study, {network.model}. Pass its "
            "study: load_cell(folder, cell_id, study=...), the path of its file or its STUDY."
        )
    model = study.initializer()
    if model.name != network.model:
        raise RunsError(
            f"the cell '{cell_id}' was trained with the model {network.model}, and the study "
            f"has {model.name} now. Pass the study as it was."
        )
    return model


def _arrays(
    folder: Path, record: records.Record
) -> tuple[dict[str, Any], settings.Network]:
    """Return the newest params, state and mask of the stages of a cell."""
    arrays: dict[str, Any] = {}
    network: dict[str, Any] = {}
    for stage_id in reversed(record.stages):
        place = folder / "stages" / stage_id
        try:
            stage = files.read_json(place / "stage.json")
            missing = {"params", "state", "mask"} - set(arrays)
            if missing & set(stage["arrays"]):
                arrays = {**checkpoint.load(place / "arrays"), **arrays}
        except (FileNotFoundError, CorruptFileError) as error:
            raise RunsError(
                f"{place}, which the cell '{record.id}' needs, is missing or corrupt. Delete "
                f"it and {folder / record.id}, and run the study again."
            ) from error
        network = network or stage["settings"].get("network", {})
    shape = tuple(network["input_shape"])
    return arrays, settings.Network(**{**network, "input_shape": shape})
