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
    """The binary version of CIFAR: records of label bytes and an image.

    Attributes:
        train: names of the files of the training set.
        test: names of those of the test set.
        labels: label bytes of a record; the last one is the class.
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
# 0.286. The two splits of a data set differ by less than this.
_SAME_MEAN = 0.01


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
    kind = "binary version" if name in _BINARIES else "four IDX files"
    remedy = f"Pass the folder with the {kind} of {name}."
    try:
        if not source.is_dir():
            raise _FileError(f"{source} is not a folder")
        arrays = _read(name, source)
        sources.check_arrays(name, arrays, remedy)
        for number, split in enumerate(("training", "test")):
            _check_split(name, split, *arrays[2 * number : 2 * number + 2])
        if np.array_equal(arrays[0][: len(arrays[2])], arrays[2]):
            raise _FileError(f"{source} has the same images to train and to test")
    except (_FileError, OSError) as error:
        raise DatasetError(f"{error}. {remedy}") from error
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    version = f"original-{digest.hexdigest()[:8]}"
    sizes = " and ".join(f"{len(arrays[i]):,}" for i in (0, 2))
    about = f"The original files of {name}: {sizes} images."
    cache = Path(cache_dir).expanduser().absolute() / f"{name}-{version}.npz"
    sources.write_cache(cache, about, arrays)
    return DatasetFiles(name, version, None, cache, about)


def _check_split(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Check that a split is that of the data set, as far as what is known of it tells."""
    spec = sources.DATASETS[name]
    size = spec.sizes[split == "test"]
    if len(images) != size:
        raise _FileError(
            f"{name} has {size:,} {split} images, and these files have {len(images):,}"
        )
    means = images.mean((0, 1, 2)) / 255
    if np.abs(means - spec.mean).max() > _SAME_MEAN:
        shown = ", ".join(f"{mean:.3f}" for mean in means)
        raise _FileError(
            f"the {split} pixels have a mean of {shown} in 0..1, and those of {name} "
            f"{', '.join(map(str, spec.mean))}: it is another data set"
        )
    counts = np.bincount(labels, minlength=spec.num_classes)
    # MNIST has between 5,421 and 6,742 training images of a class.
    most = 1.2 if name == "mnist" else 1.0
    if counts.max() > most * size / spec.num_classes:
        raise _FileError(
            f"the {split} labels have {counts.max():,} of one class, more than those of "
            f"{name}: they are of another data set"
        )


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
    shape = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4").tolist()
    if len(content) != header + math.prod(shape):
        raise _FileError(
            f"{path} has {len(content)} bytes, but its header announces "
            f"{header + math.prod(shape)}"
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
    present = {path.name for path in folder.iterdir()}
    for name in names:
        if name in present:
            return folder / name
    raise _FileError(f"{folder} contains no file {' or '.join(names)}")


def _content(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise _FileError(f"{path} can't be read ({error})") from error
