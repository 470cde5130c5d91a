"""Data sets: read, cached, prepared, and what a user hears when they are not."""

import builtins
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
    """Write a data set as TFDS prepares it, without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    place = folder / name / version
    place.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    features.save_config(str(place))
    pictures = np.random.default_rng(0).integers(
        0, 256, (len(labels), 32, 32, 3), np.uint8
    )
    splits = []
    for split in ("train", "test"):
        path = place / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for picture, label in zip(pictures, labels, strict=True):
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "png")
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
    (place / "dataset_info.json").write_text(
        f'{{"name": "{name}", "version": "{version}", "fileFormat": "array_record", '
        '"description": "Made up\\n for a test. Nobody knows it.", '
        f'"splits": [{", ".join(splits)}]}}'
    )
    return pictures


def test_digits_come_with_the_package():
    dataset = data.load(data.find("digits"))
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    source = data.DATASETS["digits"]
    assert dataset.train_images.mean() / 255 == pytest.approx(source.mean[0], abs=1e-3)
    assert dataset.train_images.std() / 255 == pytest.approx(source.std[0], abs=1e-3)
    counts = np.bincount(dataset.test_labels)
    assert counts.min() >= 25


@pytest.mark.filterwarnings("ignore")
def test_a_prepared_data_set_is_read_and_cached(tmp_path, monkeypatch):
    pictures = write_tfds(tmp_path / "tfds")
    where = {"data_dir": tmp_path / "tfds", "cache_dir": tmp_path / "cache"}
    dataset = data.load(data.find("cifar10", **where))
    np.testing.assert_array_equal(dataset.train_images, pictures)
    assert dataset.train_labels.tolist() == [0, 1, 9]
    found = data.find("cifar10", **where)
    assert found.version.startswith("3.0.2-")
    again = data.load(found._replace(folder=None))  # the cache alone
    np.testing.assert_array_equal(again.test_images, pictures)
    nothing = str(tmp_path / "nothing")
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", nothing)
    elsewhere = data.find("cifar10", cache_dir=tmp_path / "cache")
    assert elsewhere.version == found.version
    assert elsewhere.about == found.about == "Made up for a test."
    with pytest.raises(
        data.DatasetError, match="is not a folder"
    ):  # though it is cached
        data.find("cifar10", data_dir=nothing, cache_dir=tmp_path / "cache")
    with pytest.raises(
        data.DatasetError, match=f"nothing, and {tmp_path} holds no cifar10"
    ):
        data.find("cifar10", cache_dir=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_and_missing_data_are_named_with_their_repair(tmp_path):
    write_tfds(tmp_path / "tfds")
    where = {"data_dir": tmp_path / "tfds", "cache_dir": tmp_path / "cache"}
    found = data.find("cifar10", **where)
    data.load(found)
    whole = found.cache.read_bytes()
    for broken in (whole[:1000], b"", whole[:5000] + b"xxxx" + whole[5004:]):
        found.cache.write_bytes(broken)
        with pytest.raises(data.DatasetError, match="is damaged.*Delete that file"):
            data.load(found._replace(folder=None))
        with pytest.warns(UserWarning, match="was damaged; it is kept as cifar10-3"):
            data.load(found)
        assert found.cache.read_bytes() == whole
        assert found.cache.with_name(f"{found.cache.name}.corrupt").exists()
    found.cache.unlink()
    (found.folder / "cifar10-test.array_record-00000-of-00001").unlink()
    with pytest.raises(
        data.DatasetError, match="can't be read as a TFDS data set.*fetch_data"
    ):
        data.load(found)
    with pytest.raises(
        data.DatasetError, match="mnist is not prepared in .*fetch_data.py mnist"
    ):
        data.find("mnist", **where)
    with pytest.raises(data.DatasetError, match="is not a folder"):
        data.find("cifar10", data_dir=tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match="data set 'cifar' is not known. Pass one of digits"
    ):
        data.find("cifar")


@pytest.mark.filterwarnings("ignore")
def test_another_version_and_other_pictures_are_refused(tmp_path):
    write_tfds(tmp_path / "old", version="2.0.0")
    with pytest.raises(
        data.DatasetError,
        match="holds version 2.0.0, where 3.x.x is expected.*fetch_data",
    ):
        data.find("cifar10", data_dir=tmp_path / "old")
    write_tfds(tmp_path / "old", version="3.0.2")
    assert data.find("cifar10", data_dir=tmp_path / "old").version.startswith("3.0.2-")
    write_tfds(tmp_path / "other", name="mnist")
    found = data.find("mnist", data_dir=tmp_path / "other")
    with pytest.raises(
        data.DatasetError, match=r"pictures of \(32, 32, 3\), where \(28,"
    ):
        data.load(found)


@pytest.mark.filterwarnings("ignore")
def test_labels_out_of_range_are_refused(tmp_path):
    write_tfds(tmp_path, labels=(0, 9, 9))
    found = data.find("cifar10", data_dir=tmp_path)
    source = data.DATASETS["cifar10"]
    narrowed = {**data.DATASETS, "cifar10": source._replace(num_classes=5)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxprune.data.sources.SOURCES", narrowed)
        with pytest.raises(data.DatasetError, match="labels of 0 to 9, where 0 to 4"):
            data.load(found)


def test_preparing_without_tensorflow_names_the_command(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tensorflow":
            raise ImportError("No module named 'tensorflow'", name="tensorflow")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        data.DatasetError, match=r"needs tensorflow.*jaxprune\[study,prepare\]"
    ):
        data.prepare("cifar10")
    with pytest.raises(ValueError, match="'digits' can't be prepared"):
        data.prepare("digits")


def test_epochs_are_permutations_and_batches_are_full():
    key = jax.random.key(0)
    first = data.epoch_order(jax.random.clone(key), 10, 4, 0)
    second = data.epoch_order(jax.random.clone(key), 10, 4, 1)
    assert first.shape == (3, 4)
    assert sorted(first.ravel()[:10].tolist()) == list(range(10))
    assert first.ravel()[10:].tolist() == first.ravel()[:2].tolist()
    assert first.tolist() != second.tolist()
    assert data.epoch_order(key, 10, 4, 0).tolist() == first.tolist()


def test_examples_for_scoring_are_distinct_and_not_too_many():
    chosen = data.sample_examples(jax.random.key(0), 20, 10)
    assert len(set(chosen.tolist())) == 10
    with pytest.raises(ValueError, match="scoring wants 21 examples.*has 20"):
        data.sample_examples(jax.random.key(0), 20, 21)


HOW = data.Preprocessing((0.0,), (1.0,), pad=2, flip=True)


def test_crops_are_windows_of_the_padded_picture():
    images = jnp.arange(1, 17, dtype=jnp.uint8).reshape(1, 4, 4, 1).repeat(64, 0)
    made = 255 * data.preprocess(images, HOW, jax.random.key(0))[..., 0]
    padded = np.pad(np.arange(1, 17).reshape(4, 4), 2)
    windows = {
        np.asarray(w).astype(int).tobytes()
        for i in range(5)
        for j in range(5)
        for w in (padded[i : i + 4, j : j + 4], padded[i : i + 4, j : j + 4][:, ::-1])
    }
    seen = {np.asarray(picture).round().astype(int).tobytes() for picture in made}
    assert seen <= windows
    assert len(seen) > 20


def test_evaluation_is_not_augmented():
    images = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    chex.assert_trees_all_close(
        data.preprocess(images, HOW), images.astype(jnp.float32) / 255, rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_prepares_from_an_archive_in_the_downloads_place(tmp_path, monkeypatch):
    """CIFAR-10's own archive layout, ten pictures a file, where TFDS would download it."""
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

    def unpacked(self, url):
        place = tmp_path / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
        return place

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", unpacked)
    folder = data.prepare("cifar10", data_dir=tmp_path / "prepared")
    assert folder.parent.name == "cifar10"
    dataset = data.load(data.find("cifar10", data_dir=tmp_path / "prepared"))
    assert dataset.train_images.shape == (50, 32, 32, 3)
    assert sorted(dataset.test_labels.tolist()) == list(range(10))
