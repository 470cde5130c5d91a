"""A compacted network computes what the masked one computes, whatever the mask left."""

import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax import export

from jaxprune import compact, masks, models, scores


def trained_like(name: str, dtype, batch_norm: bool = True) -> models.Model:
    """A small network with biases and statistics that say something."""
    model = models.create(
        name,
        key=jax.random.key(0),
        input_shape=(8, 8, 2),
        width=0.1,
        batch_norm=batch_norm,
    )
    draw = np.random.default_rng(0)

    def moved(leaf):
        shift = draw.uniform(0.1, 0.5, leaf.shape) * (leaf.ndim == 1)
        return jnp.asarray(np.asarray(leaf) + shift, dtype)

    return model._replace(
        params=jax.tree.map(moved, model.params),
        state=jax.tree.map(moved, model.state),
    )


def difference(model: models.Model, mask, *, fold: bool) -> float:
    """Return the largest difference of the logits, as a share of the largest logit."""
    made = compact.compact(model, *model[:2], mask, fold_batch_norm=fold)
    dtype = model.params["fc" if "fc" in model.params else "fc1"]["kernel"].dtype
    x = jnp.asarray(np.random.default_rng(1).uniform(-2, 2, (3, 8, 8, 2)), dtype)
    want, _ = model.apply(masks.apply(model.params, mask), model.state, x)
    got, _ = made.model.apply(made.params, made.state, x)
    chex.assert_equal_shape([got, want])
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "mlp"])
@settings(max_examples=5, deadline=None)
@given(exponent=st.floats(0, 3.3), seed=st.integers(0, 2**31 - 1), fold=st.booleans())
def test_logits_are_those_of_the_masked_network(name, exponent, seed, fold):
    with jax.enable_x64(True):
        model = trained_like(name, jnp.float64)
        drawn = scores.random(jax.random.key(seed), model.params)
        assert (
            difference(model, masks.select(drawn, 10.0**-exponent), fold=fold) < 1e-12
        )


def test_a_constant_channel_becomes_a_map_where_a_convolution_pads():
    model = trained_like("vgg11", jnp.float32, batch_norm=False)
    mask = masks.ones_like(model.params)
    mask["conv1"]["kernel"] = mask["conv1"]["kernel"].at[..., 0].set(False)
    made = compact.compact(model, *model[:2], mask)
    assert made.info.channels["conv1"] == (5, 6)
    assert made.info.bias_maps == ("conv2",)
    bias = np.asarray(made.params["conv2"]["bias"])
    emitted = float(model.params["conv1"]["bias"][0])  # positive, so ReLU keeps it
    kernel = np.asarray(model.params["conv2"]["kernel"])[:, :, 0]
    whole = np.asarray(model.params["conv2"]["bias"]) + emitted * kernel.sum((0, 1))
    corner = np.asarray(model.params["conv2"]["bias"]) + emitted * kernel[1:, 1:].sum(
        (0, 1)
    )
    np.testing.assert_allclose(bias[1, 1], whole, rtol=1e-5)
    np.testing.assert_allclose(bias[0, 0], corner, rtol=1e-5)
    assert difference(model, mask, fold=False) < 1e-5


def test_a_cut_network_becomes_its_constant_with_a_warning():
    model = trained_like("vgg11", jnp.float32)
    mask = masks.ones_like(model.params)
    mask["conv3"]["kernel"] = jnp.zeros_like(mask["conv3"]["kernel"])
    made = compact.compact(model, *model[:2], mask, fold_batch_norm=True)
    assert made.info.collapse is not None
    assert made.info.collapse.layers == ("conv3/kernel",)
    assert all(left == 0 for left, _ in list(made.info.channels.values())[1:-1])
    assert difference(model, mask, fold=True) < 1e-5


def test_live_weights_are_those_on_a_path():
    model = models.create(
        "mlp", key=jax.random.key(0), input_shape=(1, 2, 1), width=0.01
    )
    mask = masks.ones_like(model.params)
    mask["fc2"]["kernel"] = mask["fc2"]["kernel"].at[0].set(False)
    live = compact.compact(model, *model[:2], mask).info.live
    assert not live["fc1"]["kernel"][:, 0].any()
    assert live["fc1"]["kernel"][:, 1:].all()


def test_a_module_that_does_not_say_its_wiring_is_refused():
    class Own(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((2, 2)))

        def __call__(self, x, train):
            return x @ self.w

    model = models.functional(Own())
    with pytest.raises(ValueError, match="Own does not say which layer feeds which"):
        compact.compact(model, *model[:2], masks.ones_like(model.params))


CONFIG = {"name": "vgg11", "input_shape": (8, 8, 2), "width": 0.1}


@pytest.mark.parametrize("density", [0.3, 0.0005])
def test_a_compacted_network_is_read_back_bit_for_bit(density, tmp_path):
    model = trained_like("vgg11", jnp.float32)
    mask = masks.select(scores.random(jax.random.key(1), model.params), density)
    small = compact.compact(model, *model[:2], mask).model
    compact.save(tmp_path / "small", small, **CONFIG)
    back = compact.load(tmp_path / "small")
    chex.assert_trees_all_equal(back[:2], small[:2])
    x = jnp.ones((2, 8, 8, 2))
    chex.assert_trees_all_equal(back.apply(*back[:2], x), small.apply(*small[:2], x))


def test_what_cannot_be_read_back_says_so(tmp_path):
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
    head = tmp_path / "b" / "network.json"
    whole = json.loads(head.read_text())
    for damaged, words in (
        ("{", "is not what compact.save writes"),
        (json.dumps(whole | {"format": 9}), "has format 9"),
        (json.dumps(whole | {"arrays": {}}), "is not what .* lists"),
    ):
        head.write_text(damaged)
        with pytest.raises(ValueError, match=words):
            compact.load(tmp_path / "b")


ELSEWHERE = """
import sys
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
assert not any(name.startswith(("jaxprune", "flax")) for name in sys.modules)
"""


def test_the_exported_program_runs_elsewhere_without_the_library(tmp_path):
    model = trained_like("vgg11", jnp.float32)
    mask = masks.select(scores.random(jax.random.key(1), model.params), 0.1)
    small = compact.compact(model, *model[:2], mask, fold_batch_norm=True).model
    call = jax.jit(lambda x: small.apply(small.params, small.state, x)[0])
    pictures = jax.ShapeDtypeStruct(export.symbolic_shape("b, 8, 8, 2"), jnp.float32)
    (tmp_path / "program").write_bytes(export.export(call)(pictures).serialize())
    x = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", ELSEWHERE, "program", "x.npy", "logits.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), call(x), rtol=1e-5)
