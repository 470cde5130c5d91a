"""Download and prepare a data set. Reading it afterwards does not need TensorFlow.

Example:
    python scripts/fetch_data.py cifar10 --data-dir ~/tensorflow_datasets
"""

import _cli

from pathlib import Path  # isort: skip
from typing import Annotated  # isort: skip

import tyro

from jaxprune import data

NAMES = [name for name in data.DATASETS if name != "digits"]  # which is built in
DatasetName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(NAMES)}}}")
]


def fetch(name: DatasetName, /, data_dir: Path | None = None) -> None:
    """Download and prepare a data set.

    Args:
        name: data set to prepare.
        data_dir: folder to prepare it in; by default that of TFDS.
    """
    print(f"{name} is prepared in {data.prepare(name, data_dir=data_dir)}")


if __name__ == "__main__":
    _cli.main([fetch], __doc__ or "")
