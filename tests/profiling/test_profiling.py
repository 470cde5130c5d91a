"""Multiply-accumulates by hand, and measurements that leave blank what they do not know."""

import sys

import jax
import jax.numpy as jnp
import pytest

from jaxprune import masks, models, profiling


def test_products_and_biases_by_hand():
    params = {"bias": jnp.ones((1, 4)), "kernel": jnp.ones((3, 4))}
    fn = lambda params, x: jax.nn.relu(x @ params["kernel"] + params["bias"])
    assert profiling.macs(fn, params, jnp.ones((2, 3))) == {"bias": 8, "kernel": 24}


def test_convolution_by_hand_with_stride_groups_and_padding():
    def fn(params, x):
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (2, 2), "SAME", feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    params = {"kernel": jnp.ones((3, 3, 2, 6))}
    # 4x4 outputs of 6 channels, each from 3x3 taps of the 2 channels of its group
    assert profiling.macs(fn, params, jnp.ones((1, 8, 8, 4))) == {
        "kernel": 16 * 6 * 9 * 2
    }


def test_programs_within_programs_are_counted():
    def body(carry, kernel):
        return jax.nn.relu(carry @ kernel), None

    def fn(params, x):
        x = jax.checkpoint(jax.jit(lambda p, x: x @ p))(params["first"], x)
        x, _ = jax.lax.scan(body, x, params["stack"])
        return jax.lax.cond(x.sum() > 0, lambda x: x @ params["last"], lambda x: x, x)

    params = {
        "first": jnp.ones((4, 4)),
        "last": jnp.ones((4, 4)),
        "stack": jnp.ones((5, 4, 4)),
    }
    macs = profiling.macs(fn, params, jnp.ones((1, 4)))
    assert macs == {"first": 16, "last": 16, "stack": 80}


def test_a_kernel_used_twice_counts_twice():
    fn = lambda params, x: x @ params["w"] @ params["w"]
    assert profiling.macs(fn, {"w": jnp.ones((3, 3))}, jnp.ones((1, 3))) == {"w": 18}


def test_kept_multiply_accumulates_follow_the_mask():
    dense = {"bias": 8, "kernel": 24}
    mask = {"bias": jnp.ones((1, 4), bool), "kernel": jnp.arange(12).reshape(3, 4) < 3}
    assert profiling.kept_macs(dense, mask) == {"bias": 8.0, "kernel": 6.0}


def test_batch_norm_counts_two_for_each_number():
    model = models.create(
        "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=1 / 64
    )
    fn = lambda params, x: model.apply(params, model.state, x)[0]
    macs = profiling.macs(fn, model.params, jnp.ones((1, 8, 8, 1)))
    assert macs["bn1"] == {"bias": 64, "scale": 64}
    assert macs["conv1"] == {"bias": 64, "kernel": 9 * 64}


def test_masks_do_not_make_the_dense_program_smaller():
    """What XLA executes does not see zeros: that is what kept_macs is beside it for."""
    params = {"w": jnp.ones((64, 64))}
    fn = lambda params, x: x @ params["w"]
    mask = masks.select(params, 0.01)
    dense = profiling.macs(fn, params, jnp.ones((1, 64)))
    assert profiling.macs(fn, masks.apply(params, mask), jnp.ones((1, 64))) == dense
    assert profiling.kept_macs(dense, mask)["w"] == 41


def test_memory_is_measured_in_a_fresh_process_and_blank_where_silent():
    hoard = jnp.ones((50_000_000,))  # 200 MB here must not count there
    memory = profiling.measure(lambda x: x @ x, jnp.ones((512, 512)))
    del hoard
    assert 50 < memory.idle_rss < memory.peak_rss < 1000
    assert memory.arguments == pytest.approx(512 * 512 * 4 / 1e6)
    assert memory.device_peak is None  # a CPU keeps no statistics
    assert 0 < memory.machine_percent <= 100


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such device' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(
        RuntimeError, match="measures memory failed.*\n.*no such device"
    ):
        profiling.measure(lambda x: x, jnp.ones(2))


def test_latency_counts_its_calls():
    taken = profiling.latency(lambda x: x * 2, jnp.ones(8), calls=7)
    assert taken.calls == 7
    assert 0 < taken.p50 <= taken.p95
    with pytest.raises(ValueError, match="calls is how many calls to time; got 0"):
        profiling.latency(lambda x: x, jnp.ones(1), calls=0)


def test_the_device_is_named():
    described = profiling.describe()
    assert described["platform"] == "cpu"
    assert described["cores"] > 0
    assert profiling.device_memory() == (None, None, None)
