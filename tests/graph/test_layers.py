"""Layers of many networks: as matrices they compute what the network computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import graph
from jaxprune.graph import layers, matrices
from tests.zoo import ZOO, users_settings

# Kernels of dense layers, heads, convolutions of all kinds, stacks and loops.
NETWORKS = ["equinox_groups", "unet", "gqa", "gru", "scanned", "dilated"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_matrices_of_a_layer_compute_its_outputs_from_its_inputs(name):
    with users_settings():
        net = ZOO[name](jax.random.key(0))
        program = graph.trace(net.fn, net.params, *net.args)
        found = layers.find(program)
        leaves = jax.tree.leaves(net.params)
        outs = [layer.eqn.outs[0] for layer in found]

        @jax.jit
        def run(inputs):
            values = dict(program.constants)
            values |= zip((*program.params, *program.args), inputs, strict=True)
            layers.evaluate(program, values, range(len(program.eqns)))
            rows = [matrices.inputs(layer, values[layer.data]) for layer in found]
            sums = [matrices.squares(layer, values[layer.data]) for layer in found]
            kernels = [
                layers.kernel_of(program, layer, [inputs[i] for i in layer.leaves])
                for layer in found
            ]
            given = [values[layer.eqn.ins[layer.side]] for layer in found]
            return rows, sums, kernels, given, [values[v] for v in outs]

        inputs = [*leaves, *jax.tree.leaves(net.args)]
        with jax.default_matmul_precision("highest"):
            results = jax.device_get(run(inputs))
    for layer, rows, sums, kernel, given, out in zip(found, *results, strict=True):
        np.testing.assert_array_equal(kernel, given)
        numbers = matrices.of_kernel(layer, kernel)
        assert numbers.shape == matrices.shape(layer)
        np.testing.assert_array_equal(matrices.to_kernel(layer, numbers), kernel)
        want = np.einsum("gni,goi->gon", rows, numbers)
        if layer.eqn.primitive.name == "dot_general":  # batch, free of 0, free of 1
            ends = want.shape if layer.side == 0 else (len(want), -1, want.shape[1])
            got = out.reshape(ends)
            got = got if layer.side == 0 else got.swapaxes(1, 2)
        else:
            features = layer.eqn.params["dimension_numbers"].out_spec[1]
            got = np.moveaxis(out, features, 0).reshape(want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(sums, np.square(rows).sum(1), rtol=1e-4)
        # Entries of leaves, by position.
        flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
        np.testing.assert_array_equal(flat[layers.positions(program, layer)], kernel)


def test_pulling_back_is_the_transpose_of_moving():
    params = {
        "q": jnp.ones((3, 4)),
        "k": jnp.ones((3, 2)),
        "stack": jnp.ones((2, 6, 5)),
    }

    def fn(p, x):
        h = x @ jnp.concatenate([p["q"], p["k"]], 1)
        return jnp.einsum("bi,li->bl", h, p["stack"][1].T.reshape(6, 5).T) + h[:, :5]

    program = graph.trace(fn, params, jnp.ones((2, 3)))
    draw = np.random.default_rng(0)
    leaves = [jnp.asarray(draw.normal(size=leaf.shape)) for leaf in params.values()]
    leaves = jax.tree.leaves(dict(zip(params, leaves, strict=True)))
    for layer in layers.find(program):
        other = jnp.asarray(draw.normal(size=layer.shape), jnp.float32)
        moved = layers.kernel_of(program, layer, [leaves[i] for i in layer.leaves])
        back = layers.pull_back(program, layer, other)
        total = sum((back[i] * leaves[i]).sum() for i in layer.leaves)
        np.testing.assert_allclose(total, (other * moved).sum(), rtol=1e-4)


def test_outputs_are_found_in_any_layout():
    want = {
        "equinox_groups": {"layers/0/weight": (0,), "layers/9/weight": (0,)},
        "gqa": {"q": (1, 2), "k": (1, 2), "o": (2,), "up": (1,)},
        "scanned": {"v": (0, 2), "w": (0, 2), "out": (1,)},
        "unet": {"down": (3,), "up": (2,)},
        "encoder_decoder": {"embed": (0,)},
    }
    with users_settings():
        for name, axes in want.items():
            net = ZOO[name](jax.random.key(0))
            found = graph.outputs(net.fn, net.params, *net.args)
            assert {leaf: found[leaf] for leaf in axes} == axes
    tied = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"].T
    assert graph.outputs(tied, {"w": jnp.ones((3, 4))}, jnp.ones((2, 3))) == {}
