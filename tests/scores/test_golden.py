"""Scores of the golden network equal those of the reference code, in both precisions.

tests/golden/reference_scores.json was computed with the SynFlow authors' PyTorch code,
normalized as it normalizes: SNIP by the sum over the prunable weights, GraSP by the
absolute value of the sum (plus 1e-10).
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, scores
from tests import golden_network as net

CASES = json.loads(
    (Path(__file__).parents[1] / "golden" / "reference_scores.json").read_text()
)["cases"]
LAYERS = ("conv1", "conv2", "fc")


def scored(method, dtype):
    params, batches = net.params(dtype), net.batches(dtype)
    if method == "mag":
        return scores.magnitude(params)
    if method == "snip":
        return jax.jit(functools.partial(scores.snip, net.loss))(params, batches)
    if method == "grasp":
        hot = lambda params, batch: net.loss(params, batch, temperature=200.0)
        return jax.jit(functools.partial(scores.grasp, hot))(params, batches)
    flow = jax.jit(functools.partial(scores.synflow, net.apply))
    return flow(params, jnp.ones((1, 8, 8, 3), dtype))


def normalized(method, flat):
    total = sum(layer.sum() for layer in flat)
    if method == "snip":
        return [layer / total for layer in flat]
    if method == "grasp":
        return [layer / (abs(total) + 1e-10) for layer in flat]
    return flat


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['score']}-{case['dtype']}"
)
def test_scores_and_counts_equal_those_of_the_reference_code(case):
    double = case["dtype"] == "f64"
    with jax.enable_x64(double):
        ours = scored(case["score"], jnp.float64 if double else jnp.float32)
        flat = [net.to_theirs(ours[name]["kernel"]) for name in LAYERS]
        theirs = [np.asarray(layer) for layer in case["scores"]]
        largest = max(np.abs(layer).max() for layer in theirs)
        for mine, other in zip(normalized(case["score"], flat), theirs, strict=True):
            error = np.abs(mine - other).max() / largest
            assert error < (1e-12 if double else 1e-6)
        for compression, kept in case["kept"].items():
            mask = masks.select(ours, 10 ** -float(compression), ties="reference")
            counts = [int(mask[name]["kernel"].sum()) for name in LAYERS]
            assert counts == kept
