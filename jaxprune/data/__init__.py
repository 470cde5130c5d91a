"""Pictures and labels as arrays, shuffled and augmented inside the compiled step."""

from jaxprune.data.augment import (
    Preprocessing as Preprocessing,
    preprocess as preprocess,
)
from jaxprune.data.batches import (
    choose as choose,
    order as order,
    steps_per_epoch as steps_per_epoch,
)
from jaxprune.data.sources import (
    SOURCES as SOURCES,
    Dataset as Dataset,
    DatasetError as DatasetError,
    Found as Found,
    Source as Source,
    find as find,
    load as load,
    prepare as prepare,
)
