"""Images and labels as arrays, shuffled and augmented inside the compiled step."""

from jaxprune.data.augment import (
    Preprocessing as Preprocessing,
    preprocess as preprocess,
)
from jaxprune.data.batches import (
    epoch_order as epoch_order,
    sample_examples as sample_examples,
    steps_per_epoch as steps_per_epoch,
)
from jaxprune.data.sources import (
    DATASETS as DATASETS,
    Dataset as Dataset,
    DatasetError as DatasetError,
    DatasetFiles as DatasetFiles,
    DatasetSpec as DatasetSpec,
    find as find,
    load as load,
    prepare as prepare,
)
