"""Liveness equals what gradients find, and relations what can be counted by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxprune import graph, masks
from tests.zoo import ZOO, users_settings


def masks_of(params: Any, density: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.random(leaf.shape) < density), params
    )


def test_calls_are_inlined_and_scans_unrolled():
    def fn(p: Any, x: Any) -> Any:
        body = lambda h, w: (jax.nn.relu(h @ w), None)
        return jax.lax.scan(jax.jit(body), x, p["w"])[0]

    program = graph.trace(fn, {"w": jnp.ones((3, 4, 4))}, jnp.ones((2, 4)))
    names = [eqn.primitive.name for eqn in program.eqns]
    assert names.count("dot_general") == 3
    assert not {"scan", "jit", "custom_jvp_call"} & set(names)
    assert [region.kind for region in program.regions] == ["custom_jvp"] * 3


def smooth(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["w"])
    h = h + jnp.tanh(h @ p["v"])
    first, second = jnp.split(h, 2, axis=-1)
    return jnp.concatenate([first * second, first], axis=-1) @ p["out"]


SHAPES = {"w": (4, 6), "v": (6, 6), "out": (6, 2)}
LEAVES = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
}
INPUT = jax.ShapeDtypeStruct((2, 4), jnp.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), density=st.floats(0.05, 0.9))
def test_live_weights_are_those_with_a_gradient(seed, density):
    rng = np.random.default_rng(seed)
    weights = {name: jnp.asarray(rng.standard_normal(s)) for name, s in SHAPES.items()}
    mask = masks_of(weights, density, seed)
    program = graph.trace(smooth, LEAVES, INPUT)
    liveness = graph.live(program, jax.tree.leaves(mask))
    x = jnp.asarray(rng.standard_normal((2, 4)))
    gradients = _gradients(
        masks.apply(weights, mask), x, jnp.asarray(rng.random((2, 2)))
    )
    rows = zip(
        program.params, jax.tree.leaves(mask), jax.tree.leaves(gradients), strict=True
    )
    for value, kept, gradient in rows:
        need = liveness.needs[value]
        found = np.zeros(kept.shape, bool) if need is None else np.asarray(kept) & need
        np.testing.assert_array_equal(found, (gradient != 0) & kept)


@jax.jit
def _gradients(weights: Any, x: Any, direction: Any) -> Any:
    return jax.grad(lambda w: (smooth(w, x) * direction).sum())(weights)


def test_a_rule_makes_an_operation_followed():
    fn = lambda p, x: jnp.tanh(x @ p["w"])
    program = graph.trace(fn, {"w": jnp.ones((4, 3))}, jnp.ones((2, 4)))
    mask = [np.zeros((4, 3), bool)]
    rules = {name: rule for name, rule in graph.RULES.items() if name != "tanh"}
    opaque = [rule.opaque for rule in graph.live(program, mask, rules=rules).rules]
    assert opaque == [False, True]
    rules["tanh"] = graph.elementwise(zero=True)
    liveness = graph.live(program, mask, rules=rules)
    assert not any(rule.opaque for rule in liveness.rules)
    assert not liveness.states[program.outs[0]].nonzero.any()


@pytest.mark.parametrize(
    ("name", "is_free"), [("transformer", True), ("lstm", True), ("cross", True)]
)
def test_examples_that_stay_apart_are_recognized(name, is_free):
    with users_settings():
        network = ZOO[name](jax.random.key(0))
        program = graph.trace(network.fn, network.params, *network.args)
    assert (graph.batch_axes(program) is not None) == is_free


def test_examples_that_meet_are_recognized():
    fn = lambda p, x: x - (x * p["w"]).mean(0, keepdims=True)
    program = graph.trace(fn, {"w": jnp.ones((1, 3))}, jnp.ones((2, 3)))
    assert graph.batch_axes(program) is None
