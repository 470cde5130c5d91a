"""Compaction results are counted exactly; times and memory are only checked to exist."""

from typing import Any

import jax
import pytest

from jaxprune import masks, models
from jaxprune.study import gain


def test_a_network_without_half_its_units_is_counted():
    shape = (2, 2, 1)
    model = models.create(
        "lenet-300-100", key=jax.random.key(0), input_shape=shape, batch_norm=False
    )
    mask = masks.ones_like(model.params)
    mask["fc2"]["kernel"] = mask["fc2"]["kernel"].at[150:].set(False)
    found: Any = gain.measure(model, mask, shape, batches=(1, 2), calls=1)()
    assert found["weights_dense"] == 4 * 300 + 300 * 100 + 1000
    assert found["weights_kept"] == 4 * 300 + 150 * 100 + 1000
    assert found["weights_compacted"] == 4 * 150 + 150 * 100 + 1000
    biases = 150 + 100 + 10
    assert found["macs_compacted"] == found["weights_compacted"] + biases
    assert found["bytes_compacted"] == 4 * found["macs_compacted"]
    assert 0 < found["file_compacted"] < found["file_masked"]
    assert found["difference"] == pytest.approx(0, abs=1e-5)
    assert found["empty_layers"] == 0
    for side in ("masked", "compacted"):
        assert found[f"{side}_2_p95_s"] >= found[f"{side}_2_p50_s"] > 0
        assert found[f"{side}_peak_mb"] > 0
