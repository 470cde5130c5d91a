"""Original files of a data set become arrays; bad files are named."""

import gzip

import chex
import numpy as np
import pytest

from jaxprune import data

RNG = np.random.default_rng(0)
# 20 training and 10 test images of about Fashion-MNIST's mean, 0.286: 73 of 255.
SIZES = {"train": 20, "t10k": 10}
IMAGES = {
    split: RNG.integers(64, 83, (size, 28, 28), np.uint8)
    for split, size in SIZES.items()
}
LABELS = {split: np.arange(size, dtype=np.uint8) % 10 for split, size in SIZES.items()}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Let all data sets have few images, of 10 classes."""
    sizes = {"cifar10": (50, 10), "cifar100": (10, 10)}
    small = {
        name: spec._replace(num_classes=10, sizes=sizes.get(name, (20, 10)))
        for name, spec in data.DATASETS.items()
    }
    monkeypatch.setattr("jaxprune.data.sources.DATASETS", small)


def idx(array):
    """Return the bytes of an IDX file: zeros, type 8, dimensions, sizes, data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder, compress=True):
    folder.mkdir()
    for split in IMAGES:
        for name, array in (("images", IMAGES[split]), ("labels", LABELS[split])):
            path = folder / f"{split}-{name}-idx{array.ndim}-ubyte"
            if compress:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_and_found_again(compress, tmp_path):
    folder = write_idx(tmp_path / "files", compress)
    converted = data.convert("fashion_mnist", folder, tmp_path / "cache")
    files = data.find("fashion_mnist", cache_dir=tmp_path / "cache")
    assert (files.version, files.cache) == (converted.version, converted.cache)
    assert files.about == "The original files of fashion_mnist: 20 and 10 images."
    dataset = data.load(files)
    chex.assert_trees_all_equal(dataset.train_images, IMAGES["train"][..., None])
    chex.assert_trees_all_equal(dataset.test_labels, LABELS["t10k"].astype(np.int32))


def test_the_binary_version_of_cifar_is_read(tmp_path):
    """An image is 1,024 red, 1,024 green and 1,024 blue bytes, after its labels."""
    for name, labels, files in (
        (
            "cifar10",
            1,
            [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
        ),
        ("cifar100", 2, ["train.bin", "test.bin"]),
    ):
        means = np.array(data.DATASETS[name].mean) * 255
        images = np.broadcast_to(means.round().astype(np.uint8), (10, 32, 32, 3)).copy()
        images[:, 0, 1] = [1, 2, 3]  # red, green and blue of one pixel
        tags = np.tile(np.arange(10, dtype=np.uint8)[:, None], labels)
        tags[:, :-1] = 99  # the coarse label
        folder = tmp_path / name
        folder.mkdir()
        for number, file in enumerate(files):
            images[:, 5, 5] = number
            planes = images.transpose(0, 3, 1, 2).reshape(10, -1)
            (folder / file).write_bytes(np.concatenate([tags, planes], 1).tobytes())
        dataset = data.load(data.convert(name, folder, tmp_path))
        assert dataset.train_images.shape == (10 * (len(files) - 1), 32, 32, 3)
        chex.assert_trees_all_equal(dataset.test_images, images)
        chex.assert_trees_all_equal(dataset.test_labels, np.arange(10, dtype=np.int32))


def truncate(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


BROKEN = {
    "missing": (lambda p: p.unlink(), "contains no file t10k-images-idx3-ubyte or"),
    "truncated": (truncate, "has 7855 bytes, but its header announces 7856"),
    "not compressed": (lambda p: p.write_bytes(b"text"), "can't be read"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:99]), "can't be read"),
    "other format": (
        lambda p: p.write_bytes(gzip.compress(idx(LABELS["t10k"]))),
        "is not an IDX file of 3-dimensional uint8 data",
    ),
    "no header": (
        lambda p: p.write_bytes(gzip.compress(bytes([0, 0, 8, 3]))),
        "has 4 bytes, but its header announces",
    ),
    "fewer": (
        lambda p: p.write_bytes(gzip.compress(idx(IMAGES["t10k"][:3]))),
        "3 images and 10 labels of t10k",
    ),
    "training images": (
        lambda p: p.write_bytes(gzip.compress(idx(IMAGES["train"][:10]))),
        "has the same images to train and to test",
    ),
    "darker": (
        lambda p: p.write_bytes(gzip.compress(idx(IMAGES["t10k"] // 2))),
        r"the test pixels have a mean of 0.14\d in 0..1",
    ),
    "size": (
        lambda p: p.write_bytes(gzip.compress(idx(IMAGES["t10k"][:, 1:]))),
        r"images of \(27, 28, 1\), but \(28, 28, 1\)",
    ),
}


def test_labels_and_sizes_of_another_data_set_are_refused(tmp_path):
    folder = write_idx(tmp_path / "files", compress=False)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(LABELS["train"] // 2))
    with pytest.raises(data.DatasetError, match="training labels have 4 of one class"):
        data.convert("fashion_mnist", folder, tmp_path / "cache")
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        (folder / f"train-{name}-ubyte").write_bytes(idx(array["t10k"]))
    with pytest.raises(
        data.DatasetError, match="has 20 training images, and these files have 10"
    ):
        data.convert("fashion_mnist", folder, tmp_path / "cache")
    with pytest.raises(data.DatasetError, match="labels-idx1-ubyte is not a folder"):
        data.convert("fashion_mnist", labels, tmp_path / "cache")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_file_is_named_with_the_remedy(kind, tmp_path):
    folder = write_idx(tmp_path / "files")
    change, message = BROKEN[kind]
    change(folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(
        data.DatasetError, match=f"{message}.*Pass the folder with the four"
    ):
        data.convert("fashion_mnist", folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_files_of_another_data_set_are_refused(tmp_path):
    """MNIST and Fashion-MNIST have files of the same names and sizes."""
    folder = write_idx(tmp_path / "files")
    with pytest.raises(
        data.DatasetError, match=r"mean of 0.28\d in 0..1, and those of mnist 0.131"
    ):
        data.convert("mnist", folder, tmp_path / "cache")
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3072))
    with pytest.raises(data.DatasetError, match="3072 bytes, which is not a multiple"):
        data.convert("cifar10", tmp_path, tmp_path / "cache")
    with pytest.raises(ValueError, match="'digits' can't be prepared"):
        data.convert("digits", folder, tmp_path / "cache")


def test_two_versions_in_one_cache_are_named(tmp_path):
    first = data.convert("fashion_mnist", write_idx(tmp_path / "files"), tmp_path)
    other = first.cache.with_name("fashion_mnist-other.npz")
    other.write_bytes(first.cache.read_bytes())
    with pytest.raises(
        data.DatasetError, match=r"2 versions of fashion_mnist: .*other"
    ):
        data.find("fashion_mnist", cache_dir=tmp_path)
