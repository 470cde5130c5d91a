"""A compacted network computes the same function as the masked one, for any mask."""

import dataclasses
import functools
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax import export

from jaxprune import compact, data, masks, models, scores, train, tree
from tests.programs import launch


def trained_like(name: str, dtype, batch_norm: bool = True) -> models.Model:
    """Return a small network whose biases, scales and statistics are far from 0."""
    model = models.create(
        name,
        key=jax.random.key(0),
        input_shape=(8, 8, 2),
        width=0.1,
        batch_norm=batch_norm,
    )
    draw = np.random.default_rng(0)

    def shift(name, leaf):
        signs = 1 if name.endswith("var") else draw.choice([-1, 1], leaf.shape)
        shifted = signs * (np.asarray(leaf) + draw.uniform(0.1, 0.5, leaf.shape))
        return jnp.asarray(shifted if leaf.ndim == 1 else leaf, dtype)

    return dataclasses.replace(
        model,
        params=tree.map_named(shift, model.params),
        state=tree.map_named(shift, model.state),
    )


def compacted(model: models.Model, mask, **options) -> compact.Compacted:
    return compact.compact(model, model.params, model.state, mask, **options)


def difference(model: models.Model, mask, *, fold: bool) -> float:
    """Return the largest difference of the logits, as a share of the largest logit."""
    result = compacted(model, mask, fold_batch_norm=fold)
    dtype = jax.tree.leaves(model.params)[0].dtype
    x = jnp.asarray(np.random.default_rng(1).uniform(-2, 2, (3, 8, 8, 2)), dtype)
    want, _ = model.apply(masks.apply(model.params, mask), model.state, x)
    got, _ = result.model.apply(result.params, result.state, x)
    chex.assert_equal_shape([got, want])
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "mlp", "conv2"])
@settings(max_examples=4, deadline=None)
@given(exponent=st.floats(0, 3.3), seed=st.integers(0, 2**31 - 1), fold=st.booleans())
def test_logits_equal_those_of_the_masked_network(name, exponent, seed, fold):
    with jax.enable_x64(True):
        model = trained_like(name, jnp.float64)
        drawn = scores.random(jax.random.key(seed), model.params)
        assert (
            difference(model, masks.select(drawn, 10.0**-exponent), fold=fold) < 1e-12
        )


def test_a_trained_network_keeps_its_logits():
    """Training changes weights, biases and statistics, under the mask."""
    model = models.create(
        "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.2
    )
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.05)
    digits = data.load(data.find("digits"))
    image_set = train.ImageSet(
        jnp.asarray(digits.train_images),
        jnp.asarray(digits.train_labels),
        data.Preprocessing((0.287,), (0.353,), 0, False),
    )
    recipe = train.Training(epochs=2.0, batch_size=128, learning_rate=0.1)
    fitted = train.fit(model, mask, image_set, recipe, jax.random.key(2))
    assert fitted.history[-1]["accuracy"] > 40  # training has changed the network
    model = fitted.model
    x = data.preprocess(jnp.asarray(digits.test_images), image_set.preprocessing)
    want, _ = model.apply(model.params, model.state, x)
    for fold in (False, True):
        result = compacted(model, mask, fold_batch_norm=fold)
        got, _ = result.model.apply(result.params, result.state, x)
        assert float(jnp.abs(got - want).max() / jnp.abs(want).max()) < 1e-5


def test_a_constant_channel_becomes_a_bias_map_where_a_convolution_pads():
    model = trained_like("vgg11", jnp.float32, batch_norm=False)
    bias = model.params["conv1"]["bias"]
    model.params["conv1"]["bias"] = jnp.abs(bias)  # ReLU keeps it
    mask = masks.ones_like(model.params)
    mask["conv1"]["kernel"] = mask["conv1"]["kernel"].at[..., 0].set(False)
    result = compacted(model, mask)
    assert result.info.channels["conv1"] == (5, 6)
    assert result.info.bias_maps == ("conv2",)
    bias = np.asarray(result.params["conv2"]["bias"])
    emitted = float(model.params["conv1"]["bias"][0])
    kernel = np.asarray(model.params["conv2"]["kernel"])[:, :, 0]
    whole = np.asarray(model.params["conv2"]["bias"]) + emitted * kernel.sum((0, 1))
    corner = np.asarray(model.params["conv2"]["bias"]) + emitted * kernel[1:, 1:].sum(
        (0, 1)
    )
    np.testing.assert_allclose(bias[1, 1], whole, rtol=1e-5)
    np.testing.assert_allclose(bias[0, 0], corner, rtol=1e-5)
    assert difference(model, mask, fold=False) < 1e-5


def test_a_collapsed_network_becomes_its_constant_with_a_warning():
    model = trained_like("vgg11", jnp.float32)
    mask = masks.ones_like(model.params)
    mask["conv3"]["kernel"] = jnp.zeros_like(mask["conv3"]["kernel"])
    result = compacted(model, mask, fold_batch_norm=True)
    assert result.info.collapse is not None
    assert result.info.collapse.layers == ("conv3/kernel",)
    assert all(left == 0 for left, _ in list(result.info.channels.values())[:-1])
    assert difference(model, mask, fold=True) < 1e-5


def test_live_weights_are_those_on_a_path():
    model = models.create(
        "mlp", key=jax.random.key(0), input_shape=(1, 2, 1), width=0.01
    )
    mask = masks.ones_like(model.params)
    mask["fc2"]["kernel"] = mask["fc2"]["kernel"].at[0].set(False)
    live = compacted(model, mask).info.live
    assert not live["fc1"]["kernel"][:, 0].any()
    assert live["fc1"]["kernel"][:, 1:].all()


def test_a_module_without_a_wiring_is_refused():
    class Unwired(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((2, 2)))

        def __call__(self, x, train):
            return x @ self.w

    model = models.functional(Unwired())
    with pytest.raises(
        ValueError, match="Unwired does not say which layer feeds which"
    ):
        compacted(model, masks.ones_like(model.params))


class Unusual(nnx.Module):
    """Convolutions with strides, kernel dilation, input dilation and padding."""

    input_shape = (9, 8, 2)

    def __init__(self, groups: int = 1):
        rngs = nnx.Rngs(0)
        conv = functools.partial(nnx.Conv, rngs=rngs)
        self.conv1 = conv(
            2, 5, (3, 2), strides=(2, 1), kernel_dilation=(1, 2), padding="SAME"
        )
        self.conv2 = conv(5, 6, (3, 3), input_dilation=2, padding=((0, 2), (3, 1)))
        self.conv3 = conv(
            6, 4, (2, 2), strides=2, padding="VALID", feature_group_count=groups
        )

    def __call__(self, x, train):
        hidden = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
        return self.conv3(hidden).mean((1, 2))

    def wiring(self):
        writes = ("conv1", "conv2", "logits")
        reads = ("input", *writes[:2])
        names = ("conv1", "conv2", "conv3")
        return [
            models.Layer(name, None, *ends)
            for name, *ends in zip(names, reads, writes, strict=True)
        ]


class Own(nnx.Module):
    """A user's network: another epsilon, and a dropout with a key in its state."""

    input_shape = (4, 4, 2)

    def __init__(self, **changes):
        rngs = nnx.Rngs(0)
        self.c1 = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.n1 = nnx.BatchNorm(6, epsilon=0.1, rngs=rngs, **changes)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(6, 3, rngs=rngs)
        self.layers = [("c1", "n1", "input", "c1"), ("fc", None, "c1", "logits")]

    def __call__(self, x, train):
        hidden = jax.nn.relu(self.n1(self.c1(x), use_running_average=not train))
        return self.fc(self.drop(hidden, deterministic=not train).mean((1, 2)))

    def wiring(self):
        return [models.Layer(*layer) for layer in self.layers]


@pytest.mark.parametrize("fold", [False, True])
def test_a_users_network_is_compacted(fold):
    model = models.functional(Own())
    state = {**model.state, "n1": {"mean": jnp.full(6, 0.3), "var": jnp.full(6, 0.2)}}
    mask = masks.ones_like(model.params)
    mask["c1"]["kernel"] = mask["c1"]["kernel"].at[..., :2].set(False)
    mask["fc"]["kernel"] = mask["fc"]["kernel"].at[4:].set(False)
    result = compact.compact(model, model.params, state, mask, fold_batch_norm=fold)
    assert result.info.channels["c1"] == (2, 6)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 2)), jnp.float32)
    want, _ = model.apply(masks.apply(model.params, mask), state, x)
    got, _ = result.model.apply(result.params, result.state, x)
    np.testing.assert_allclose(got, want, atol=1e-6)
    with pytest.raises(ValueError, match=r"for images of \(4, 4, 2\); got \(5, 4, 2\)"):
        result.model.apply(result.params, result.state, jnp.ones((1, 5, 4, 2)))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            [("c9", None, "input", "logits")],
            "names the layer 'c9', where there is NoneTy",
        ),
        ([("n1", None, "input", "logits")], "'n1', where there is BatchNorm"),
        (
            [("c1", None, "c0", "logits")],
            "reads the stream 'c0', which no layer before",
        ),
        ([("c1", "n1", "input", "c1")], "no layer of Own writes the stream 'logits'"),
        ([("c1", "drop", "input", "logits")], "'drop' behind layer 'c1' is Dropout"),
    ],
)
def test_an_impossible_wiring_is_refused(layers, sentence):
    own = Own()
    own.layers = layers
    with pytest.raises(ValueError, match=sentence):
        models.wiring(models.functional(own))


def test_arrays_of_another_model_are_refused():
    model = models.functional(Own())
    mask = masks.ones_like(model.params)
    with pytest.raises(ValueError, match="state .*tree.* model"):
        compact.compact(model, model.params, {}, mask)
    with pytest.raises(ValueError, match="which jit can't trace. Call it outside"):
        jax.jit(lambda params: compact.compact(model, params, model.state, mask))(
            model.params
        )
    with pytest.raises(
        ValueError, match="is BatchNorm. Only nnx.BatchNorm with use_sc"
    ):
        models.wiring(models.functional(Own(use_scale=False)))


def check_sparse_layers(model: models.Model, shape: tuple[int, ...]) -> None:
    """Check that layers that multiply by their kept weights alone give the same logits."""
    layers = [layer.name for layer in models.wiring(model)]
    few = compact.sparse(model, layers)
    for name in layers:
        kernel, left = (
            models.get_path(one.params, name)["kernel"] for one in (model, few)
        )
        assert left.shape == (int((kernel != 0).sum()),)
    x = jnp.asarray(np.random.default_rng(1).uniform(-2, 2, (3, *shape)))
    want, got = (one.apply(one.params, one.state, x)[0] for one in (model, few))
    chex.assert_trees_all_close(got, want, atol=1e-12 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(
    ("name", "density"), [("conv2", 0.05), ("mlp", 0.05), ("mlp", 0.0005)]
)
def test_sparse_layers_give_the_same_logits(name, density):
    with jax.enable_x64(True):
        model = trained_like(name, jnp.float64)
        drawn = scores.random(jax.random.key(1), model.params)
        mask = masks.select(drawn, density)
        check_sparse_layers(compacted(model, mask).model, (8, 8, 2))


def test_sparse_layers_give_the_same_logits_for_any_convolution():
    with jax.enable_x64(True):
        model = models.functional(Unusual())
        model = dataclasses.replace(
            model,
            params=jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params),
        )
        mask = masks.select(scores.random(jax.random.key(0), model.params), 0.3)
        check_sparse_layers(
            dataclasses.replace(model, params=masks.apply(model.params, mask)),
            Unusual.input_shape,
        )


def test_the_fastest_network_gives_the_same_logits():
    model = trained_like("mlp", jnp.float32)
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.05)
    model = dataclasses.replace(model, params=masks.apply(model.params, mask))
    x = jnp.ones((1, 8, 8, 2))
    result = compact.fastest(model, x, calls=2)
    assert set(result.layers) < {layer.name for layer in models.wiring(model)}
    want, got = (
        one.apply(one.params, one.state, x)[0] for one in (model, result.model)
    )
    chex.assert_trees_all_close(got, want, atol=1e-5 * float(jnp.abs(want).max()))


def test_layers_that_cannot_be_sparse_are_refused(tmp_path):
    model = trained_like("vgg11", jnp.float32)
    with pytest.raises(
        ValueError, match="layer 'conv9' is not there. Pass some of conv1"
    ):
        compact.sparse(model, ["conv9"])
    cut = dataclasses.replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
    with pytest.raises(ValueError, match="calls is the number of calls to time; got 0"):
        compact.fastest(cut, jnp.ones((1, 8, 8, 2)), calls=0)
    with pytest.raises(ValueError, match=r"x has \w+ of \(4, 8, 2\), and the network"):
        compact.fastest(model, jnp.ones((1, 4, 8, 2)))
    with pytest.raises(ValueError, match="'conv3' convolves groups of channels"):
        models.wiring(models.functional(Unusual(groups=2)))
    with pytest.raises(ValueError, match="'conv2' multiplies by its kept weights alr"):
        compact.sparse(compact.sparse(model, "conv2"), ["conv2"])
    with pytest.raises(ValueError, match="'conv2' holds its kept weights alone"):
        compact.save(tmp_path / "few", compact.sparse(model, ["conv2"]), **CONFIG)


def arrays(model: models.Model):
    return model.params, model.state


CONFIG: Any = {"name": "vgg11", "input_shape": (8, 8, 2), "width": 0.1}


@pytest.mark.parametrize("density", [0.3, 0.0005])
def test_a_compacted_network_is_read_back_bit_for_bit(density, tmp_path):
    model = trained_like("vgg11", jnp.float32)
    mask = masks.select(scores.random(jax.random.key(1), model.params), density)
    small = compacted(model, mask).model
    compact.save(tmp_path / "small", small, **CONFIG)
    back = compact.load(tmp_path / "small")
    chex.assert_trees_all_equal(arrays(back), arrays(small))
    x = jnp.ones((2, 8, 8, 2))
    logits = [one.apply(one.params, one.state, x)[0] for one in (back, small)]
    chex.assert_trees_all_equal(*logits)


def test_networks_that_cannot_be_saved_or_loaded_are_refused(tmp_path):
    model = trained_like("vgg11", jnp.float32)
    with pytest.raises(FileNotFoundError, match="Pass a folder of compact.save"):
        compact.load(tmp_path)
    with pytest.raises(ValueError, match="models.create does not take"):
        compact.save(tmp_path / "a", model, **CONFIG, depth=3)
    compact.save(tmp_path / "b", model, **CONFIG)
    with pytest.raises(ValueError, match="holds a network already"):
        compact.save(tmp_path / "b", model, **CONFIG)
    with pytest.raises(ValueError, match="config makes another network"):
        compact.save(tmp_path / "c", model, **CONFIG | {"name": "resnet20"})
    for change, sentence in (
        ({"batch_norm": False}, "without the normalization 'bn1' that the one to save"),
        (
            {"input_shape": (9, 9, 2)},
            r"input_shape \(9, 9, 2\), but the network to save",
        ),
        ({"width": np.float32(0.1)}, "config has float32 at 'width', which JSON"),
    ):
        with pytest.raises(ValueError, match=sentence):
            compact.save(tmp_path / "c", model, **CONFIG | change)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file. Pass another folder"):
        compact.save(tmp_path / "file", model, **CONFIG)
    head = tmp_path / "b" / "network.json"
    whole = json.loads(head.read_text())
    for corrupt, sentence in (
        ("{", "is not what compact.save writes"),
        (json.dumps(whole | {"format": 9}), "has format 9"),
        (json.dumps(whole | {"arrays": {}}), "is not what .* lists"),
        (
            json.dumps(
                whole | {"arrays": {**whole["arrays"], "params/x": [[2], "int8"]}}
            ),
            "params/x is not there, and not .*int8",
        ),
        (
            json.dumps(whole | {"config": {**whole["config"], "name": "resnet20"}}),
            "network.json describes another network than .*arrays holds",
        ),
    ):
        head.write_text(corrupt)
        with pytest.raises(ValueError, match=sentence):
            compact.load(tmp_path / "b")


def test_a_save_that_was_killed_can_be_repeated(tmp_path):
    model = trained_like("vgg11", jnp.float32)
    compact.save(tmp_path / "small", model, **CONFIG)
    (tmp_path / "small" / "network.json").unlink()  # written last
    compact.save(tmp_path / "small", model, **CONFIG)
    chex.assert_trees_all_equal(arrays(compact.load(tmp_path / "small")), arrays(model))


def test_the_exported_program_runs_without_the_library(tmp_path):
    model = trained_like("vgg11", jnp.float32)
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.1)
    small = compacted(model, mask, fold_batch_norm=True).model
    call = jax.jit(lambda x: small.apply(small.params, small.state, x)[0])
    images = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8, 8, 2"), jnp.float32)
    (tmp_path / "program").write_bytes(export.export(call)(images).serialize())
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    files = [tmp_path / name for name in ("program", "x.npy", "logits.npy")]
    launch.run("run_exported", *files)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), call(x), rtol=1e-5)
