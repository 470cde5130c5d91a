"""The files that the authors of a data set distribute, as arrays; no TensorFlow."""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxprune.data import sources
from jaxprune.data.sources import DatasetError, DatasetFiles


class _FileError(Exception):
    """A file that is missing or is not what its name says; the message names it."""


class _Binary(NamedTuple):
    """The binary version of CIFAR: an image after its labels, again and again.

    Attributes:
        train: names of the files of the training set.
        test: names of those of the test set.
        labels: bytes of labels before each image; the last one counts.
    """

    train: Sequence[str]
    test: Sequence[str]
    labels: int


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_BINARIES: Mapping[str, _Binary] = {
    "cifar10": _Binary(_BATCHES, ("test_batch.bin",), labels=1),
    "cifar100": _Binary(("train.bin",), ("test.bin",), labels=2),
}
_SIZE = (32, 32, 3)
# Files of MNIST and Fashion-MNIST have the same names and sizes; their means are 0.131 and
# 0.286.
_SAME_MEAN = 0.02


def convert(
    name: str, folder: str | os.PathLike, cache_dir: str | os.PathLike
) -> DatasetFiles:
    """Read the original files of a data set, and write its cache of decoded arrays.

    `find` with the same `cache_dir` and without a prepared TFDS folder then finds it. Nothing
    is downloaded.

    Args:
        name: one of DATASETS except digits, which needs no preparation.
        folder: contains the four IDX files of MNIST or Fashion-MNIST, compressed by gzip or
            not, or the `.bin` files of CIFAR's binary version.
        cache_dir: folder for decoded arrays.

    Returns:
        The data set; its version contains a hash of its arrays.

    Raises:
        ValueError: if the name is unknown, or is digits.
        DatasetError: if a file is missing or corrupt, is of another data set, or the cache
            can't be written.
    """
    sources.check_preparable(name)
    source = Path(folder).expanduser().absolute()
    remedy = f"Pass the folder with the original files of {name}."
    try:
        arrays = _read(name, source)
    except _FileError as error:
        raise DatasetError(f"{error}. {remedy}") from error
    sources.check_arrays(name, arrays, remedy)
    means = arrays[0].mean((0, 1, 2)) / 255
    expected = sources.DATASETS[name].mean
    if np.abs(means - expected).max() > _SAME_MEAN:
        shown = ", ".join(f"{mean:.3f}" for mean in means)
        raise DatasetError(
            f"{source} has training pixels of mean {shown} in 0..1, and those of {name} "
            f"have {', '.join(map(str, expected))}: it is another data set. {remedy}"
        )
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    version = f"original-{digest.hexdigest()[:8]}"
    sizes = " and ".join(f"{len(arrays[i]):,}" for i in (0, 2))
    about = f"The original files of {name}: {sizes} images."
    cache = Path(cache_dir).expanduser().absolute() / f"{name}-{version}.npz"
    sources.write_cache(cache, about, arrays)
    return DatasetFiles(name, version, None, cache, about)


def _read(name: str, folder: Path) -> tuple[np.ndarray, ...]:
    """Return training images and labels, then those of the test set."""
    if name in _BINARIES:
        own = _BINARIES[name]
        splits = own.train, own.test
        return tuple(array for split in splits for array in _cifar(folder, split, own))
    arrays = []
    for split in ("train", "t10k"):
        images = _idx(folder, f"{split}-images", 3)[..., None]
        labels = _idx(folder, f"{split}-labels", 1).astype(np.int32)
        if len(images) != len(labels):
            raise _FileError(
                f"{folder} has {len(images)} images and {len(labels)} labels of {split}"
            )
        arrays += [images, labels]
    return tuple(arrays)


def _idx(folder: Path, start: str, dimensions: int) -> np.ndarray:
    """Read bytes in the IDX format: a magic number, the sizes, then the data."""
    name = f"{start}-idx{dimensions}-ubyte"
    path = _find(folder, [name, f"{name}.gz", name.replace("-idx", ".idx")])
    content = _content(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise _FileError(
            f"{path} is not an IDX file of {dimensions}-dimensional uint8 data"
        )
    shape = np.frombuffer(content[4:header], ">u4").tolist()
    if len(content) != header + math.prod(shape):
        raise _FileError(
            f"{path} has {len(content)} bytes in place of {header + math.prod(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _cifar(
    folder: Path, names: Sequence[str], layout: _Binary
) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels; the files store each channel by itself."""
    height, width, channels = _SIZE
    row = layout.labels + math.prod(_SIZE)
    rows = []
    for name in names:
        path = _find(folder, [name])
        content = _content(path)
        if not content or len(content) % row:
            raise _FileError(
                f"{path} has {len(content)} bytes, which is not a multiple of the {row} "
                "of an image and its labels"
            )
        rows.append(np.frombuffer(content, np.uint8).reshape(-1, row))
    table = np.concatenate(rows)
    planes = table[:, layout.labels :].reshape(-1, channels, height, width)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, table[:, layout.labels - 1].astype(np.int32)


def _find(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise _FileError(f"{folder} contains no file {' or '.join(names)}")


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise _FileError(f"{path} can't be read ({error})") from error
