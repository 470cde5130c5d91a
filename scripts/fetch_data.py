"""Prepare a data set: download it, or read its original files from a folder.

Reading it afterwards does not need TensorFlow; reading original files does not either.

Examples:
    python scripts/fetch_data.py cifar10 --data-dir ~/tensorflow_datasets
    python scripts/fetch_data.py fashion_mnist --from /usr/share/datasets/fashion-mnist
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


def fetch(
    name: DatasetName,
    /,
    data_dir: Path | None = None,
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    cache_dir: Path = _cli.CACHE / "data",
) -> None:
    """Prepare a data set.

    Args:
        name: data set to prepare.
        data_dir: folder to prepare a download in; by default that of TFDS.
        source: folder of the original files; read these instead of downloading: IDX files
            of MNIST and Fashion-MNIST, or the binary version of CIFAR.
        cache_dir: with --from, the folder that receives the decoded data set.
    """
    if source is None:
        print(f"{name} is prepared in {data.prepare(name, data_dir=data_dir)}")
        return
    if data_dir is not None:
        raise ValueError(
            f"--data-dir {data_dir} is for downloads, and --from reads files from {source}. "
            "Leave out one of them; --cache-dir is where decoded files go."
        )
    converted = data.convert(name, source, cache_dir)
    print(f"{name} is prepared in {converted.cache}. {converted.about}")


if __name__ == "__main__":
    _cli.main([fetch], __doc__ or "")
