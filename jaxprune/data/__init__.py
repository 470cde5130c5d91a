"""Images and labels as arrays, shuffled and augmented inside the compiled step."""

from jaxprune.data.augment import (
    Preprocessing,
    preprocess,
)
from jaxprune.data.batches import (
    epoch_order,
    sample_examples,
    steps_per_epoch,
)
from jaxprune.data.originals import convert
from jaxprune.data.sources import (
    DATASETS,
    Dataset,
    DatasetError,
    DatasetFiles,
    DatasetSpec,
    find,
    load,
    prepare,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetError",
    "DatasetFiles",
    "DatasetSpec",
    "Preprocessing",
    "convert",
    "epoch_order",
    "find",
    "load",
    "prepare",
    "preprocess",
    "sample_examples",
    "steps_per_epoch",
]
