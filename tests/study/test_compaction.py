"""Compaction results are counted exactly; times and memory are only checked to exist."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune import masks, models
from jaxprune.study import compaction


def test_a_network_without_half_its_units_is_counted():
    shape = (2, 2, 1)
    model = models.create(
        "lenet-300-100", key=jax.random.key(0), input_shape=shape, batch_norm=False
    )
    mask = masks.ones_like(model.params)
    mask["fc2"]["kernel"] = mask["fc2"]["kernel"].at[150:].set(False)
    results: Any = compaction.compare(
        model, mask, jnp.ones((2, *shape)), batches=(1, 2), calls=1
    ).facts
    assert results["weights_dense"] == 4 * 300 + 300 * 100 + 1000
    assert results["weights_kept"] == 4 * 300 + 150 * 100 + 1000
    assert results["weights_compacted"] == 4 * 150 + 150 * 100 + 1000
    biases = 150 + 100 + 10
    assert results["macs_compacted"] == results["weights_compacted"] + biases
    assert results["bytes_compacted"] == 4 * results["macs_compacted"]
    assert 0 < results["file_compacted"] < results["file_masked"]
    assert results["difference"] == pytest.approx(0, abs=1e-5)
    assert results["empty_layers"] == 0
    for side in ("masked", "compacted"):
        assert results[f"{side}_2_p95_s"] >= results[f"{side}_2_p50_s"] > 0
        assert results[f"{side}_peak_mb"] > 0
