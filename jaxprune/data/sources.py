"""Data sets as uint8 arrays: scikit-learn's digits, and CIFAR and MNIST through TFDS.

Reading a prepared TFDS folder needs no TensorFlow; preparing one does (extra
`prepare`). Decoded arrays are cached. A copy of the cache is enough to read the data set
on another machine; `originals` makes one from the original files.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxprune import disk, tree


class DatasetError(Exception):
    """A data set that is missing, incomplete or corrupt; the message names the remedy."""


class DatasetSpec(NamedTuple):
    """What is known about a data set before it is read.

    Attributes:
        num_classes: number of classes; labels are 0 to num_classes - 1.
        mean: mean of the training pixels scaled to [0, 1], one value per channel.
        std: standard deviation of the same pixels, one value per channel.
        pad: pixels of zero padding for the usual random crop; 0 for no crop.
        flip: whether the usual augmentation flips images left to right.
        shape: height, width and channels of an image.
        sizes: numbers of training and test images.
        major_version: first number of the TFDS version that is read; other major versions
            contain other images.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    shape: tuple[int, int, int] = (32, 32, 3)
    sizes: tuple[int, int] = (50_000, 10_000)
    major_version: int = 3


_GRAY, _MNIST = (28, 28, 1), (60_000, 10_000)
DATASETS: Mapping[str, DatasetSpec] = {
    "digits": DatasetSpec(10, (0.287,), (0.353,), shape=(8, 8, 1), sizes=(1437, 360)),
    "cifar10": DatasetSpec(10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), 4, True),
    "cifar100": DatasetSpec(100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), 4, True),
    "mnist": DatasetSpec(10, (0.131,), (0.308,), shape=_GRAY, sizes=_MNIST),
    "fashion_mnist": DatasetSpec(10, (0.286,), (0.353,), shape=_GRAY, sizes=_MNIST),
}


class DatasetFiles(NamedTuple):
    """The location and version of a data set.

    Attributes:
        name: a key of DATASETS.
        version: identifies the exact images: the TFDS version and a hash of its
            `dataset_info.json`.
        folder: the prepared TFDS folder, or None.
        cache: the file of decoded arrays, which may not exist yet; None for no cache.
        about: one sentence that describes the data set.
    """

    name: str
    version: str
    folder: Path | None
    cache: Path | None
    about: str


class Dataset(NamedTuple):
    """A data set in memory.

    Attributes:
        name: a key of DATASETS.
        version: as in `DatasetFiles`.
        train_images: uint8 pixels of 0 to 255, (examples, height, width, channels).
        train_labels: int32 from 0, (examples,).
        test_images: uint8 pixels of 0 to 255, (examples, height, width, channels).
        test_labels: int32 from 0, (examples,).
    """

    name: str
    version: str
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, " test"]


# Names on PyPI, where they differ from the names of the modules.
_PACKAGES = {"sklearn": "scikit-learn", "tensorflow_datasets": "tensorflow-datasets"}


@contextlib.contextmanager
def _requires(extras: str, purpose: str) -> Iterator[None]:
    """Turn the ImportError of a missing package into a DatasetError that names the extra."""
    try:
        yield
    except ImportError as error:
        module = (error.name or "a package").partition(".")[0]
        raise DatasetError(
            f"{purpose} needs {_PACKAGES.get(module, module)}, which is not installed. "
            f"Run: pip install 'jaxprune[{extras}]'"
        ) from error


def find(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetFiles:
    """Find a data set without reading its images.

    Args:
        name: one of DATASETS.
        data_dir: the folder that TFDS prepared it in; None for TFDS's own default.
        cache_dir: folder for decoded arrays; None for no cache.

    Returns:
        The location and version of the data set.

    Raises:
        ValueError: if the name is unknown.
        DatasetError: if the data set is neither prepared nor cached, only another version
            is there, or tensorflow-datasets is not installed.

    Example:
        >>> find("digits").version
        'scikit-learn'
    """
    tree.check_option("data set", name, DATASETS)
    if name == "digits":
        about = "1,797 handwritten digits of 8x8 pixels, from scikit-learn."
        return DatasetFiles(name, "scikit-learn", None, None, about)
    # The default of TFDS, computed here because TFDS may not be installed.
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    prepared = Path(data_dir or default).expanduser().absolute()
    versions = sorted(
        (path.parent for path in (prepared / name).glob("*/dataset_info.json")),
        key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")],
    )
    caches = Path(cache_dir).expanduser().absolute() if cache_dir else None
    major = DATASETS[name].major_version
    accepted = [v for v in versions if v.name.split(".")[0] == str(major)]
    if accepted:
        newest = accepted[-1]
        description = (newest / "dataset_info.json").read_bytes()
        version = f"{newest.name}-{hashlib.sha256(description).hexdigest()[:8]}"
        cache = caches / f"{name}-{version}.npz" if caches else None
        if not (cache and cache.exists()):
            with _requires("study", f"reading {name}"):
                import tensorflow_datasets  # noqa: F401  # before hours of work
        return DatasetFiles(name, version, newest, cache, _first_sentence(description))
    if versions:
        raise DatasetError(
            f"{prepared / name} contains version {', '.join(v.name for v in versions)}, but "
            f"{major}.x.x is expected. Prepare it: python scripts/fetch_data.py {name} "
            f"--data-dir {prepared}"
        )
    if data_dir and not prepared.is_dir():
        raise DatasetError(
            f"data_dir {prepared} is not a folder. Pass the folder that contains {name}/, "
            f"or prepare the data set there: python scripts/fetch_data.py {name} "
            f"--data-dir {prepared}"
        )
    # A folder that the caller names is not silently replaced by a cached copy.
    decoded = sorted(caches.glob(f"{name}-*.npz")) if caches and not data_dir else []
    if len(decoded) == 1:
        version = decoded[0].stem.removeprefix(f"{name}-")
        (about,) = _read_cache(decoded[0], ["about"])
        return DatasetFiles(name, version, None, decoded[0], str(about))
    if decoded:
        raise DatasetError(
            f"{caches} contains {len(decoded)} versions of {name}: "
            f"{', '.join(path.name for path in decoded)}. Keep one of them."
        )
    option = f" --data-dir {prepared}" if data_dir else ""
    cached = (
        f", and {caches} contains no {name}-*.npz" if caches and not data_dir else ""
    )
    raise DatasetError(
        f"{name} is not prepared in {prepared}{cached}. Prepare it once: "
        f"pip install 'jaxprune[study,prepare]' && "
        f"python scripts/fetch_data.py {name}{option}; or, without a download, from a "
        f"folder of its original files: python scripts/fetch_data.py {name} --from FOLDER"
    )


def _first_sentence(description: bytes) -> str:
    """Return the first sentence of a TFDS description."""
    try:
        text = " ".join(json.loads(description)["description"].split())
    except (ValueError, KeyError):
        return "a TFDS data set without a description."
    return text.partition(". ")[0].rstrip(".") + "."


def load(files: DatasetFiles) -> Dataset:
    """Read a data set, from its cache if there is one.

    Args:
        files: the result of `find`.

    Returns:
        Images and labels, all in memory.

    Raises:
        DatasetError: if a package is not installed, the cache is corrupt and nothing is
            there to regenerate it from, the prepared folder can't be read, or its images or
            labels are not those of this data set.

    Example:
        >>> load(find("digits")).train_images.shape
        (1437, 8, 8, 1)
    """
    if files.name == "digits":
        arrays = _load_digits()
    else:
        arrays = _load_cached(files) or _load_prepared(files)
    check_arrays(files.name, arrays, "Prepare the data set again.")
    return Dataset(files.name, files.version, *arrays)


def check_arrays(name: str, arrays: Sequence[np.ndarray], remedy: str) -> None:
    """Check the shape of the images and the range of the labels."""
    spec = DATASETS[name]
    for images, labels in (arrays[:2], arrays[2:]):
        if not len(images):
            raise DatasetError(f"a split of {name} has no images. {remedy}")
        if images.shape[1:] != spec.shape:
            raise DatasetError(
                f"{name} has images of {images.shape[1:]}, but {spec.shape} is expected. "
                f"{remedy}"
            )
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise DatasetError(
                f"{name} has labels of {labels.min()} to {labels.max()}, but 0 to "
                f"{spec.num_classes - 1} are expected. {remedy}"
            )


def _load_cached(files: DatasetFiles) -> tuple[np.ndarray, ...] | None:
    """Read the cache; quarantine a corrupt one if it can be regenerated."""
    if not (files.cache and files.cache.exists()):
        return None
    try:
        return _read_cache(files.cache)
    except DatasetError:
        if files.folder is None:
            raise
        # Another process may have quarantined it first.
        with contextlib.suppress(FileNotFoundError):
            disk.quarantine(files.cache)
    return None


def _load_prepared(files: DatasetFiles) -> tuple[np.ndarray, ...]:
    """Decode the prepared data set, and cache the arrays."""
    if files.folder is None:
        raise DatasetError(
            f"{files.cache} no longer exists, and there is no prepared data set. Prepare "
            f"it: python scripts/fetch_data.py {files.name}"
        )
    arrays = _decode(files, files.folder)
    if files.cache:
        write_cache(files.cache, files.about, arrays)
    return arrays


def _load_digits() -> tuple[np.ndarray, ...]:
    """Split scikit-learn's 1,797 digits 80 to 20, at random with a fixed seed.

    In their original order, the last fifth is by other writers, and accuracy on it is three
    points lower.
    """
    with _requires("study", "reading digits"):
        package = importlib.util.find_spec("sklearn")
        if package is None:
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    # Its own loader imports all of scikit-learn and SciPy, which takes a second.
    (folder,) = package.submodule_search_locations or [""]
    table = Path(folder) / "datasets" / "data" / "digits.csv.gz"
    try:
        digits = np.loadtxt(table, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(
            f"{table} can't be read ({error}). Run: pip install --force-reinstall "
            "scikit-learn"
        ) from error
    images = digits[:, :-1].reshape(-1, 8, 8, 1) * np.uint8(15)  # 0..16 becomes 0..240
    labels = digits[:, -1].astype(np.int32)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    train, test = shuffled[:1437], shuffled[1437:]
    return images[train], labels[train], images[test], labels[test]


def _decode(files: DatasetFiles, folder: Path) -> tuple[np.ndarray, ...]:
    arrays: list[np.ndarray] = []
    with _requires("study", f"reading {files.name}"):
        try:
            import tensorflow_datasets as tfds

            builder: Any = tfds.builder_from_directory(str(folder))
            for split in ("train", "test"):
                source = builder.as_data_source(split=split)
                examples = [source[i] for i in range(len(source))]
                arrays += [
                    np.stack([example["image"] for example in examples]),
                    np.array([example["label"] for example in examples], np.int32),
                ]
        except ImportError:
            raise
        except Exception as error:  # TFDS raises many classes; the remedy is the same
            raise DatasetError(
                f"{folder} can't be read as a TFDS data set ({_first_line(error)}). "
                f"Delete that folder and prepare it again: "
                f"python scripts/fetch_data.py {files.name} --data-dir "
                f"{folder.parent.parent}"
            ) from error
    return tuple(arrays)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def _read_cache(path: Path, names: Sequence[str] = _ARRAYS) -> tuple[np.ndarray, ...]:
    try:  # a zip file checks each array against its CRC
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"the cached data set {path} is corrupt ({_first_line(error)}). Delete that "
            "file, then prepare the data set or copy the file again."
        ) from error


def write_cache(path: Path, about: str, arrays: Sequence[np.ndarray]) -> None:
    """Write the arrays of `Dataset` in their order, to be read back by `load`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.atomic_write(path) as file:
            np.savez(file, about=about, **dict(zip(_ARRAYS, arrays, strict=True)))
    except OSError as error:
        raise DatasetError(
            f"the decoded data can't be written to {path} ({error.strerror or error}). Make "
            "room there, or pass another folder with --cache-dir."
        ) from error


def check_preparable(name: str) -> None:
    """Check that a data set can be prepared: digits needs no preparation."""
    accepted = [known for known in DATASETS if known != "digits"]
    if name not in accepted:
        raise ValueError(
            f"'{name}' can't be prepared. Pass one of {', '.join(accepted)}."
        )


def prepare(name: str, *, data_dir: str | os.PathLike | None = None) -> Path:
    """Download a data set, and prepare it in a format that is read without TensorFlow.

    Args:
        name: one of DATASETS except digits, which needs no preparation.
        data_dir: where to prepare it; None for TFDS's own default.

    Returns:
        The prepared folder.

    Raises:
        ValueError: if the name is unknown, or is digits.
        DatasetError: if TensorFlow is not installed, or the download fails.
    """
    check_preparable(name)
    with _requires("study,prepare", f"preparing {name}"):
        import tensorflow  # noqa: F401  # only preparing needs it
        import tensorflow_datasets as tfds
    builder = tfds.builder(
        name, data_dir=data_dir and str(data_dir), file_format="array_record"
    )
    try:
        builder.download_and_prepare()
    except Exception as error:  # network, proxy, checksum, disk: each has its own class
        raise DatasetError(
            f"{name} could not be downloaded or prepared ({_first_line(error)}). Check "
            "the network and the disk, and run the same command again. Or pass --from and "
            "the folder of its original files."
        ) from error
    return Path(builder.data_dir)
