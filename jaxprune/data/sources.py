"""Data sets as uint8 arrays: scikit-learn's digits, and CIFAR and MNIST through TFDS.

Reading a prepared TFDS folder needs no TensorFlow; preparing one does (extra
`prepare`). What was decoded once is cached, and the cache alone is enough on another
machine.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxprune import disk


class DatasetError(Exception):
    """A data set that is not there or not whole; its text is for the user."""


class DatasetSpec(NamedTuple):
    """What is known of a data set before it is read.

    num_classes: number of labels; mean, std: a value a channel of the training pixels
    scaled to [0, 1]; pad, flip: the usual augmentation; shape: of a picture; major: first
    number of the TFDS version that is read, other versions holding other pictures.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    shape: tuple[int, int, int] = (32, 32, 3)
    major: int = 3


_GREY = (28, 28, 1)
DATASETS: Mapping[str, DatasetSpec] = {
    "digits": DatasetSpec(10, (0.287,), (0.353,), shape=(8, 8, 1)),
    "cifar10": DatasetSpec(10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), 4, True),
    "cifar100": DatasetSpec(100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), 4, True),
    "mnist": DatasetSpec(10, (0.131,), (0.308,), shape=_GREY),
    "fashion_mnist": DatasetSpec(10, (0.286,), (0.353,), 2, True, _GREY),
}


class DatasetFiles(NamedTuple):
    """Where a data set lies.

    name: as in DATASETS; version: names the exact pictures, by TFDS's version and a hash
    of what it says of them; folder: the prepared TFDS folder, if any; cache: the
    decoded arrays, there or to be written, if any; about: what the data set says of
    itself, in one sentence.
    """

    name: str
    version: str
    folder: Path | None
    cache: Path | None
    about: str


class Dataset(NamedTuple):
    """A data set in memory; labels count from 0."""

    name: str
    version: str
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, " test"]


def find(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetFiles:
    """Find a data set without reading its pictures.

    Args:
        name: one of DATASETS.
        data_dir: the folder that TFDS prepared it in; None for TFDS's own default.
        cache_dir: folder for decoded arrays; None for no cache.

    Raises:
        ValueError: if the name is not known.
        DatasetError: if it is neither prepared nor cached, or only in another version.

    Example:
        >>> find("digits").version
        'scikit-learn'
    """
    if name not in DATASETS:
        raise ValueError(
            f"data set '{name}' is not known. Pass one of {', '.join(DATASETS)}."
        )
    if name == "digits":
        about = "1,797 handwritten digits of 8x8 pixels, from scikit-learn."
        return DatasetFiles(name, "scikit-learn", None, None, about)
    prepared = Path(data_dir).absolute() if data_dir else _default_data_dir()
    versions = sorted(
        (path.parent for path in (prepared / name).glob("*/dataset_info.json")),
        key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")],
    )
    caches = Path(cache_dir).absolute() if cache_dir else None
    major = DATASETS[name].major
    fitting = [v for v in versions if v.name.split(".")[0] == str(major)]
    if fitting:
        described = (fitting[-1] / "dataset_info.json").read_bytes()
        version = f"{fitting[-1].name}-{hashlib.sha256(described).hexdigest()[:8]}"
        cache = caches / f"{name}-{version}.npz" if caches else None
        return DatasetFiles(name, version, fitting[-1], cache, _first_sentence(described))
    if versions:
        raise DatasetError(
            f"{prepared / name} holds version {', '.join(v.name for v in versions)}, where "
            f"{major}.x.x is expected. Prepare that: python scripts/fetch_data.py {name} "
            f"--data-dir {prepared}"
        )
    if data_dir and not prepared.is_dir():
        raise DatasetError(
            f"data_dir {prepared} is not a folder. Pass the folder that holds {name}/, or "
            f"prepare it there: python scripts/fetch_data.py {name} --data-dir {prepared}"
        )
    # A folder that was asked for by name is not replaced by what happens to be cached.
    decoded = sorted(caches.glob(f"{name}-*.npz")) if caches and not data_dir else []
    if len(decoded) == 1:
        version = decoded[0].stem.removeprefix(f"{name}-")
        return DatasetFiles(
            name, version, None, decoded[0], str(*_read_cache(decoded[0], ["about"]))
        )
    where = f" --data-dir {prepared}" if data_dir else ""
    cached = f", and {caches} holds no {name}-*.npz" if caches and not data_dir else ""
    raise DatasetError(
        f"{name} is not prepared in {prepared}{cached}. Prepare it once: "
        f"pip install 'jaxprune[study,prepare]' && "
        f"python scripts/fetch_data.py {name}{where}"
    )


def _first_sentence(described: bytes) -> str:
    """Return the first sentence of a TFDS description."""
    try:
        text = " ".join(json.loads(described)["description"].split())
    except (ValueError, KeyError):
        return "a TFDS data set without a description."
    return text.partition(". ")[0].rstrip(".") + "."


def _default_data_dir() -> Path:
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR).expanduser()


def load(found: DatasetFiles) -> Dataset:
    """Read a data set that `find` found, from its cache if it has one.

    Args:
        found: where it lies.

    Returns:
        Pictures and labels, all in memory.

    Raises:
        DatasetError: if the cache is damaged, the prepared folder is not whole, or its
            pictures or labels are not those of such a data set.

    Example:
        >>> load(find("digits")).train_images.shape
        (1437, 8, 8, 1)
    """
    arrays = _digits() if found.name == "digits" else _cached(found) or _decoded(found)
    dataset = Dataset(found.name, found.version, *arrays)
    shape = dataset.train_images.shape[1:]
    if shape != DATASETS[found.name].shape:
        raise DatasetError(
            f"{found.name} has pictures of {shape}, where {DATASETS[found.name].shape} is "
            "expected. Prepare the data set again."
        )
    classes = DATASETS[found.name].num_classes
    for labels in (dataset.train_labels, dataset.test_labels):
        if labels.min() < 0 or labels.max() >= classes:
            raise DatasetError(
                f"{found.name} has labels of {labels.min()} to {labels.max()}, where 0 to "
                f"{classes - 1} are expected. Prepare the data set again."
            )
    return dataset


def _cached(found: DatasetFiles) -> tuple[np.ndarray, ...] | None:
    """Read the cache; set a damaged one aside where it can be made anew."""
    if not (found.cache and found.cache.exists()):
        return None
    try:
        return _read_cache(found.cache)
    except DatasetError:
        if found.folder is None:
            raise
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            disk.quarantine(found.cache)
    return None


def _decoded(found: DatasetFiles) -> tuple[np.ndarray, ...]:
    """Decode the prepared data set, and cache what came out."""
    if found.folder is None:
        raise DatasetError(
            f"{found.cache} is gone, and no prepared data set is there. Prepare it: "
            f"python scripts/fetch_data.py {found.name}"
        )
    arrays = _decode(found, found.folder)
    if found.cache:
        _write_cache(found.cache, found.about, arrays)
    return arrays


def _digits() -> tuple[np.ndarray, ...]:
    """Split scikit-learn's 1,797 digits at random, once and for all, 80 to 20.

    In the order they come in, the last fifth is by other writers and harder by three
    points.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]  # 0..16 becomes 0..240
    labels = digits.target.astype(np.int32)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    train, test = shuffled[:1437], shuffled[1437:]
    return images[train], labels[train], images[test], labels[test]


def _decode(found: DatasetFiles, folder: Path) -> tuple[np.ndarray, ...]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(
            f"reading {found.name} needs tensorflow-datasets, which is not installed. "
            "Run: pip install 'jaxprune[study]'"
        ) from error
    arrays: list[np.ndarray] = []
    try:
        builder: Any = tfds.builder_from_directory(str(folder))
        for split in ("train", "test"):
            source = builder.as_data_source(split=split)
            examples = [source[i] for i in range(len(source))]
            arrays += [
                np.stack([example["image"] for example in examples]),
                np.array([example["label"] for example in examples], np.int32),
            ]
    except Exception as error:  # whatever TFDS raises, the repair is the same
        raise DatasetError(
            f"{folder} can't be read as a TFDS data set ({_first_line(error)}). "
            f"Delete that folder and prepare it again: "
            f"python scripts/fetch_data.py {found.name} --data-dir "
            f"{folder.parent.parent}"
        ) from error
    return tuple(arrays)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def _read_cache(path: Path, names: Sequence[str] = _ARRAYS) -> tuple[np.ndarray, ...]:
    try:  # a zip file checks each array against its CRC
        with np.load(path, allow_pickle=False) as held:
            return tuple(held[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"the decoded data in {path} is damaged ({_first_line(error)}). Delete that "
            "file, and prepare the data set or copy the file again."
        ) from error


def _write_cache(path: Path, about: str, arrays: tuple[np.ndarray, ...]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.atomic_write(path) as file:
            np.savez(file, about=about, **dict(zip(_ARRAYS, arrays, strict=True)))
    except OSError as error:
        raise DatasetError(
            f"the decoded data can't be written to {path} ({error.strerror or error}). Make "
            "room there, or pass another folder with --cache-dir."
        ) from error


def prepare(name: str, *, data_dir: str | os.PathLike | None = None) -> Path:
    """Download a data set and prepare it in a format that is read without TensorFlow.

    Args:
        name: one of DATASETS but digits, which needs no preparation.
        data_dir: where to prepare it; None for TFDS's own default.

    Returns:
        The prepared folder.

    Raises:
        ValueError: if the name is not known, or is digits.
        DatasetError: if TensorFlow is not installed, or the download fails.
    """
    if name not in DATASETS or name == "digits":
        known = [known for known in DATASETS if known != "digits"]
        raise ValueError(f"'{name}' can't be prepared. Pass one of {', '.join(known)}.")
    try:
        import tensorflow  # noqa: F401  # only preparing needs it
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(
            f"preparing {name} needs {error.name}, which is not installed. "
            "Run: pip install 'jaxprune[study,prepare]'"
        ) from error
    builder = tfds.builder(
        name, data_dir=data_dir and str(data_dir), file_format="array_record"
    )
    try:
        builder.download_and_prepare()
    except Exception as error:  # DNS, proxy, checksum, disk: each has its own class
        raise DatasetError(
            f"{name} could not be downloaded or prepared ({_first_line(error)}). Check "
            "the network and the disk and run the same command again; or copy a folder "
            "prepared elsewhere and pass it as --data-dir."
        ) from error
    return Path(builder.data_dir)
