"""Data sets are read, cached and prepared, and errors name the remedy."""

import builtins
import importlib.util
import io
import tarfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxprune import data


def write_tfds(folder, name="cifar10", version="3.0.2", labels=(0, 1, 9)):
    """Write a prepared TFDS data set without TensorFlow; return its images."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    target = folder / name / version
    target.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    features.save_config(str(target))
    images = np.random.default_rng(0).integers(
        0, 256, (len(labels), 32, 32, 3), np.uint8
    )
    splits = []
    for split in ("train", "test"):
        path = target / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            encoded = io.BytesIO()
            Image.fromarray(image).save(encoded, "png")
            feature = {
                "image": tf_feature_pb2.Feature(
                    bytes_list=tf_feature_pb2.BytesList(value=[encoded.getvalue()])
                ),
                "label": tf_feature_pb2.Feature(
                    int64_list=tf_feature_pb2.Int64List(value=[label])
                ),
            }
            example = tf_example_pb2.Example(
                features=tf_feature_pb2.Features(feature=feature)
            )
            writer.write(example.SerializeToString())
        writer.close()
        shape = '"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"'
        splits.append(
            f'{{"name": "{split}", {shape}, "numBytes": "1", "shardLengths": ["{len(labels)}"]}}'
        )
    (target / "dataset_info.json").write_text(
        f'{{"name": "{name}", "version": "{version}", "fileFormat": "array_record", '
        '"description": "Random\\n test images. Nobody uses them.", '
        f'"splits": [{", ".join(splits)}]}}'
    )
    return images


@pytest.fixture
def cifar10(tmp_path):
    """A prepared data set of three images, and the folder for its cache."""
    write_tfds(tmp_path / "tfds")
    return {"data_dir": tmp_path / "tfds", "cache_dir": tmp_path / "cache"}


def test_digits_need_no_files():
    dataset = data.load(data.find("digits"))
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    spec = data.DATASETS["digits"]
    assert dataset.train_images.mean() / 255 == pytest.approx(spec.mean[0], abs=1e-3)
    assert dataset.train_images.std() / 255 == pytest.approx(spec.std[0], abs=1e-3)
    counts = np.bincount(dataset.test_labels)
    assert counts.min() >= 25


@pytest.mark.filterwarnings("ignore")
def test_a_prepared_data_set_is_decoded(tmp_path):
    images = write_tfds(tmp_path)
    files = data.find("cifar10", data_dir=tmp_path)
    assert files.version.startswith("3.0.2-")
    dataset = data.load(files)
    np.testing.assert_array_equal(dataset.train_images, images)
    assert dataset.train_labels.tolist() == [0, 1, 9]


@pytest.mark.filterwarnings("ignore")
def test_the_cache_alone_is_enough(cifar10, monkeypatch):
    prepared = data.find("cifar10", **cifar10)
    decoded = data.load(prepared)
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    hide_package(monkeypatch, "tensorflow_datasets")
    cached = data.find("cifar10", cache_dir=cifar10["cache_dir"])
    assert (cached.folder, cached.version) == (None, prepared.version)
    assert cached.about == prepared.about == "Random test images."
    chex.assert_trees_all_equal(data.load(cached)[2:], decoded[2:])


@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_the_caller_names_is_not_replaced_by_the_cache(cifar10):
    data.load(data.find("cifar10", **cifar10))
    with pytest.raises(
        data.DatasetError, match="is not a folder.*fetch_data.py cifar10"
    ):
        data.find("cifar10", data_dir="/nowhere", cache_dir=cifar10["cache_dir"])


def test_a_missing_data_set_is_named_with_the_command_that_prepares_it(
    cifar10, tmp_path, monkeypatch
):
    with pytest.raises(
        data.DatasetError, match=r"mnist is not prepared in .*fetch_data\.py mnist"
    ):
        data.find("mnist", **cifar10)
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    with pytest.raises(
        data.DatasetError, match=f"nowhere, and {tmp_path} contains no cifar10"
    ):
        data.find("cifar10", cache_dir=tmp_path)


def test_an_unknown_data_set_is_an_error():
    with pytest.raises(ValueError, match="'cifar' is unknown. Pass one of digits"):
        data.find("cifar")


CORRUPTIONS = {
    "cut": lambda whole: whole[:1000],
    "empty": lambda whole: b"",
    "changed": lambda whole: whole[:5000] + b"xxxx" + whole[5004:],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_cache_is_regenerated_or_is_an_error(corruption, cifar10):
    files = data.find("cifar10", **cifar10)
    data.load(files)
    whole = files.cache.read_bytes()
    files.cache.write_bytes(CORRUPTIONS[corruption](whole))
    with pytest.raises(data.DatasetError, match="is corrupt.*Delete that file"):
        data.load(files._replace(folder=None))  # nothing to regenerate it from
    with pytest.warns(
        UserWarning, match="is corrupt or incomplete; it was renamed to cifar10-3"
    ):
        data.load(files)
    assert files.cache.read_bytes() == whole
    assert files.cache.with_name(f"{files.cache.name}.corrupt").exists()


@pytest.mark.filterwarnings("ignore")
def test_an_incomplete_prepared_folder_is_an_error(cifar10):
    files = data.find("cifar10", **cifar10)
    (files.folder / "cifar10-test.array_record-00000-of-00001").unlink()
    with pytest.raises(
        data.DatasetError, match="can't be read as a TFDS data set.*fetch_data"
    ):
        data.load(files)


@pytest.mark.filterwarnings("ignore")
def test_a_cache_that_can_not_be_written_is_an_error(cifar10):
    cifar10["cache_dir"].write_text("a file where the folder should be")
    with pytest.raises(
        data.DatasetError, match=r"can't be written to .*pass another folder"
    ):
        data.load(data.find("cifar10", **cifar10))


def test_only_the_expected_major_version_is_accepted(tmp_path):
    write_tfds(tmp_path, version="2.0.0")
    with pytest.raises(
        data.DatasetError,
        match="contains version 2.0.0, but 3.x.x is expected.*fetch_data",
    ):
        data.find("cifar10", data_dir=tmp_path)
    write_tfds(tmp_path, version="3.0.2")
    assert data.find("cifar10", data_dir=tmp_path).version.startswith("3.0.2-")


@pytest.mark.filterwarnings("ignore")
def test_images_of_another_shape_are_refused(tmp_path):
    write_tfds(tmp_path, name="mnist")
    files = data.find("mnist", data_dir=tmp_path)
    with pytest.raises(
        data.DatasetError, match=r"images of \(32, 32, 3\), but \(28, 28, 1\)"
    ):
        data.load(files)


@pytest.mark.filterwarnings("ignore")
def test_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    write_tfds(tmp_path, labels=(0, 9, 9))
    files = data.find("cifar10", data_dir=tmp_path)
    spec = data.DATASETS["cifar10"]._replace(num_classes=5)
    monkeypatch.setattr(
        "jaxprune.data.sources.DATASETS", {**data.DATASETS, "cifar10": spec}
    )
    with pytest.raises(data.DatasetError, match="labels of 0 to 9, but 0 to 4"):
        data.load(files)


def hide_package(monkeypatch, package):
    """Make importing a package fail as if it were not installed."""
    real_import = builtins.__import__

    def import_others(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real_import(name, *args, **kwargs)

    real_find = importlib.util.find_spec

    def find_others(name, *args):
        return None if name.partition(".")[0] == package else real_find(name, *args)

    monkeypatch.setattr(builtins, "__import__", import_others)
    monkeypatch.setattr(importlib.util, "find_spec", find_others)


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        (
            "sklearn",
            lambda: data.load(data.find("digits")),
            r"reading digits needs scikit-learn.*pip install 'jaxprune\[study\]'",
        ),
        (
            "tensorflow",
            lambda: data.prepare("cifar10"),
            r"preparing cifar10 needs tensorflow,.*'jaxprune\[study,prepare\]'",
        ),
    ],
    ids=["scikit-learn", "tensorflow"],
)
def test_a_missing_package_names_the_extra(package, call, message, monkeypatch):
    hide_package(monkeypatch, package)
    with pytest.raises(data.DatasetError, match=message):
        call()


def test_decoding_without_tensorflow_datasets_names_the_extra(cifar10, monkeypatch):
    files = data.find("cifar10", **cifar10)
    hide_package(monkeypatch, "tensorflow_datasets")
    with pytest.raises(
        data.DatasetError,
        match=r"reading cifar10 needs tensorflow-datasets.*'jaxprune\[study\]'",
    ):
        data.load(files)


def test_digits_can_not_be_prepared():
    with pytest.raises(ValueError, match="'digits' can't be prepared"):
        data.prepare("digits")


def test_every_epoch_is_another_permutation_of_the_examples():
    key = jax.random.key(0)
    orders = [
        data.epoch_order(jax.random.clone(key), 10, epoch).tolist() for epoch in (0, 1)
    ]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]


def test_the_order_of_an_epoch_depends_on_its_number_only():
    key = jax.random.key(0)
    first = data.epoch_order(jax.random.clone(key), 10, 3)
    assert first.tolist() == data.epoch_order(key, 10, 3).tolist()


def test_without_shuffling_the_order_is_that_of_the_data():
    order = data.epoch_order(jax.random.key(0), 5, 3, shuffle=False)
    assert (order.tolist(), order.dtype) == ([0, 1, 2, 3, 4], jnp.int32)


def test_the_last_step_of_an_epoch_may_be_short():
    assert [data.steps_per_epoch(examples, 4) for examples in (7, 8, 9)] == [2, 2, 3]


def test_examples_for_scoring_are_distinct():
    chosen = data.sample_examples(jax.random.key(0), 20, 10).tolist()
    assert len(set(chosen)) == 10
    assert set(chosen) <= set(range(20))


def test_scoring_with_more_examples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="scoring needs 21 examples.*has 20"):
        data.sample_examples(jax.random.key(0), 20, 21)


AUGMENTED = data.Preprocessing((0.0,), (1.0,), pad=2, flip=True)


def test_augmented_images_are_windows_of_the_padded_image_some_mirrored():
    images = jnp.arange(1, 17, dtype=jnp.uint8).reshape(1, 4, 4, 1).repeat(64, 0)
    augmented = 255 * data.preprocess(images, AUGMENTED, jax.random.key(0))[..., 0]
    padded = np.pad(np.arange(1, 17).reshape(4, 4), 2)
    windows = {
        np.asarray(w).astype(int).tobytes()
        for i in range(5)
        for j in range(5)
        for w in (padded[i : i + 4, j : j + 4], padded[i : i + 4, j : j + 4][:, ::-1])
    }
    drawn = {np.asarray(image).round().astype(int).tobytes() for image in augmented}
    assert drawn <= windows
    assert len(drawn) > 20


def test_without_a_key_images_are_not_augmented():
    images = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    chex.assert_trees_all_close(
        data.preprocess(images, AUGMENTED), images.astype(jnp.float32) / 255, rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_a_prepared_download_can_be_read(tmp_path, monkeypatch):
    """The download is replaced by an archive in CIFAR-10's layout, ten images per file."""
    import tensorflow_datasets as tfds

    archive = tmp_path / "cifar-10-binary.tar.gz"
    row = np.zeros((10, 3073), np.uint8)
    row[:, 0] = np.arange(10)
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    files = {f"data_batch_{i}.bin": row.tobytes() for i in range(1, 6)}
    files |= {
        "test_batch.bin": row.tobytes(),
        "batches.meta.txt": "\n".join(names).encode(),
    }
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    def extract(self, url):
        target = tmp_path / "extracted"
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        return target

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", extract)
    folder = data.prepare("cifar10", data_dir=tmp_path / "prepared")
    assert folder.parent.name == "cifar10"
    dataset = data.load(data.find("cifar10", data_dir=tmp_path / "prepared"))
    assert dataset.train_images.shape == (50, 32, 32, 3)
    assert sorted(dataset.test_labels.tolist()) == list(range(10))
