"""Download a data set and prepare it once; reading it then needs no TensorFlow.

python scripts/fetch_data.py cifar10 --data-dir ~/tensorflow_datasets
"""

import _cli

from pathlib import Path  # isort: skip
from typing import Annotated  # isort: skip

import tyro

from jaxprune import data


def fetch(
    name: Annotated[str, tyro.conf.Positional], /, data_dir: Path | None = None
) -> None:
    """Download a data set and prepare it once.

    Args:
        name: cifar10, cifar100, mnist or fashion_mnist.
        data_dir: where to prepare it; TFDS's own default without it.
    """
    print(f"{name} is prepared in {data.prepare(name, data_dir=data_dir)}")


if __name__ == "__main__":
    _cli.main([fetch], __doc__ or "")
