"""Studies: many cells that share their first stages, resumable at any moment.

Import the modules one by one: `records` needs no JAX, so that a report can be made where none
is installed.
"""

import os
from typing import Any, NamedTuple


class LoadedCell(NamedTuple):
    """The network of a cell.

    Attributes:
        model: `models.Model` with the pruned weights; `model.apply(params, state, x)`.
        params: its weights; pruned ones are 0.
        state: its BatchNorm statistics.
        mask: True keeps; all True for a dense network.
        record: what was measured.
    """

    model: Any
    params: Any
    state: Any
    mask: Any
    record: Any


def load_cell(
    folder: str | os.PathLike, cell_id: str, *, study: Any = None
) -> LoadedCell:
    """Load the trained network of a cell, its mask and its record.

    Args:
        folder: of the study, such as runs/digits.
        cell_id: of the cell, as in `study.py status` and the names of the folders.
        study: of a user's own network, the path of the study's file, or its `STUDY`.

    Returns:
        The network as it was evaluated.

    Raises:
        RunsError: if the folder has no such cell, it is not trained, or a stage is missing or
            corrupt; or if the network is a user's and `study` has no such network.
        CorruptFileError: if the record is not what was written.

    Example:
        The accuracy of a cell of digits, computed again:

        ```python
        from jaxprune import data, train
        from jaxprune.study import load_cell

        model, params, state, mask, record = load_cell("runs/digits", "snip-c1-s0-...")
        digits, source = data.load(data.find("digits")), data.DATASETS["digits"]
        preprocessing = data.Preprocessing(source.mean, source.std, source.pad, source.flip)
        images = train.ImageSet(digits.test_images, digits.test_labels, preprocessing)
        print(train.evaluate(model, images).metric, record.metric)
        ```
    """
    from jaxprune.study import loading

    return LoadedCell(*loading.load_cell(folder, cell_id, study))
