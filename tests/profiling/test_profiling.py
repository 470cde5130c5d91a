"""Multiply-accumulates against counts by hand, and measurements of time and memory."""

import json
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, models, profiling


def test_a_product_counts_for_its_kernel_and_a_bias_once_per_output():
    params = {"bias": jnp.ones((1, 4)), "kernel": jnp.ones((3, 4))}
    fn = lambda params, x: jax.nn.relu(x @ params["kernel"] + params["bias"])
    # 2 rows of 4 outputs, each a sum of 3 products plus a bias
    assert profiling.macs(fn, params, jnp.ones((2, 3))) == {"bias": 8, "kernel": 24}


def test_a_convolution_counts_stride_groups_and_padding():
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


def test_nested_programs_are_counted():
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
    assert macs == {"first": 16, "last": 16, "stack": 80}  # 5 iterations of 16


def test_a_while_loop_counts_one_iteration():
    def fn(params, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ params["w"], x)

    assert profiling.macs(fn, {"w": jnp.ones((3, 3))}, jnp.ones((1, 3))) == {"w": 9}


def test_a_kernel_used_twice_counts_twice():
    fn = lambda params, x: x @ params["w"] @ params["w"]
    assert profiling.macs(fn, {"w": jnp.ones((3, 3))}, jnp.ones((1, 3))) == {"w": 18}


def test_kept_multiply_accumulates_are_proportional_to_the_mask():
    dense = {"bias": 8, "kernel": 24}
    mask = {"bias": jnp.ones((1, 4), bool), "kernel": jnp.arange(12).reshape(3, 4) < 3}
    assert profiling.kept_macs(dense, mask) == {"bias": 8.0, "kernel": 6.0}


def test_batch_norm_counts_two_per_output():
    model = models.create(
        "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=1 / 64
    )
    fn = lambda params, x: model.apply(params, model.state, x)[0]
    macs = profiling.macs(fn, model.params, jnp.ones((1, 8, 8, 1)))
    assert macs["bn1"] == {"bias": 64, "scale": 64}
    assert macs["conv1"] == {"bias": 64, "kernel": 9 * 64}


def test_a_mask_changes_kept_macs_but_not_macs():
    """XLA executes the dense program, zeros included; only kept_macs counts the mask."""
    params = {"w": jnp.ones((64, 64))}
    fn = lambda params, x: x @ params["w"]
    mask = masks.select(params, 0.01)
    dense = profiling.macs(fn, params, jnp.ones((1, 64)))
    assert profiling.macs(fn, masks.apply(params, mask), jnp.ones((1, 64))) == dense
    assert profiling.kept_macs(dense, mask)["w"] == 41


def test_memory_is_that_of_a_fresh_process():
    large = jnp.ones((50_000_000,))  # 200 MB in this process, which must not count
    memory = profiling.measure(lambda x: x @ x, jnp.ones((512, 512)))
    del large
    assert 50 < memory.idle_rss < memory.peak_rss < 1000
    assert memory.arguments == pytest.approx(512 * 512 * 4 / 1e6)
    assert memory.device_peak is None  # a CPU reports no statistics
    assert 0 < memory.machine_percent <= 100


def start_python_that_fails(monkeypatch, folder, error, code):
    """Let processes that are started print an error and end."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\necho '{error}' >&2\nexit {code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_failed_measurement_reports_the_error_of_its_process(monkeypatch, tmp_path):
    start_python_that_fails(monkeypatch, tmp_path, "no such device", 3)
    with pytest.raises(
        RuntimeError, match="measures memory failed.*\n.*no such device"
    ):
        profiling.measure(lambda x: x, jnp.ones(2))


def test_a_device_that_this_process_has_filled_gets_the_remedy(monkeypatch, tmp_path):
    error = "RESOURCE_EXHAUSTED: Out of memory"
    start_python_that_fails(monkeypatch, tmp_path, error, 1)
    with pytest.raises(
        RuntimeError, match="^the device has no memory left.*PREALLOCATE=false"
    ):
        profiling.measure(lambda x: x, jnp.ones(2))


def test_a_program_that_is_compiled_in_a_process_of_its_own_is_measured_alike(tmp_path):
    """As on a GPU, where compiling takes memory of the device."""
    exported = jax.export.export(jax.jit(lambda x: x @ x))(jnp.ones((64, 64)))
    (tmp_path / "program").write_bytes(exported.serialize())
    np.save(tmp_path / "0.npy", np.ones((64, 64), np.float32))
    command = [sys.executable, "-m", "jaxprune.profiling._fresh"]
    with subprocess.Popen(
        [*command, str(tmp_path), "1", "compile"],
        stdin=subprocess.PIPE,  # its end would end the process
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        measured = profiling.Memory(**json.loads(process.stdout.read()))
    assert measured.arguments == pytest.approx(64 * 64 * 4 / 1e6)
    assert 0 < measured.idle_rss < measured.peak_rss
    assert not tmp_path.exists()


def test_a_full_temporary_folder_is_named_with_a_remedy(monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(RuntimeError, match=r"No space left.*Free disk space.*TMPDIR"):
        profiling.measure(lambda x: x, jnp.ones(2))


def test_latency_times_the_requested_number_of_calls():
    timed = profiling.latency(lambda x: x * 2, jnp.ones(8), calls=7)
    assert timed.calls == 7
    assert 0 < timed.p50 <= timed.p95


def test_interleaved_calls_each_function_twice_in_a_row():
    """The first of two calls in a row warms the caches, so only the second is timed."""
    calls = []
    profiling.interleaved(
        lambda: calls.append("a"), lambda: calls.append("b"), calls=2, warmup=1
    )
    assert calls == ["a", "a", "b", "b"] * 3


@pytest.mark.parametrize(
    "measure",
    [
        lambda: profiling.latency(lambda x: x, jnp.ones(1), calls=0),
        lambda: profiling.interleaved(lambda: None, calls=0),
        lambda: profiling.seconds(lambda: None, calls=0),
    ],
)
def test_timing_no_calls_is_an_error(measure):
    with pytest.raises(ValueError, match="calls is the number of calls to time; got 0"):
        measure()


def test_the_maximum_is_unknown_if_a_sample_is():
    samples = [
        profiling.MemorySample(1.0, None, 5.0),
        profiling.MemorySample(2.0, 3.0, 4.0),
    ]
    assert profiling.maximum(samples) == {
        "device_in_use": 2.0,
        "device_reserved": None,
        "machine_percent": 5.0,
    }


def test_the_device_and_the_machine_are_described():
    described = profiling.describe()
    assert described["platform"] == "cpu"
    assert described["cores"] > 0
    assert profiling.device_memory() == (None, None, None)


H100 = {
    "num_allocs": 40, "bytes_in_use": 60_000_000, "peak_bytes_in_use": 80_000_000,
    "largest_alloc_size": 9, "bytes_limit": 85_000_000_000, "bytes_reserved": 0,
    "peak_bytes_reserved": 0, "largest_free_block_bytes": 0, "pool_bytes": 2_000_000_000,
    "peak_pool_bytes": 2_000_000_000,
}  # fmt: skip
TPU = {name: value for name, value in H100.items() if "pool" not in name}


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (H100, (60.0, 80.0, 2000.0)),
        (TPU, (60.0, 80.0, None)),
        ({**TPU, "peak_bytes_in_use": -1, "pool_bytes": -1}, (60.0, None, None)),
        ({"bytes_in_use": 0}, (0.0, None, None)),
        ({}, (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_device_memory_is_none_where_a_backend_gives_no_figure(
    stats, expected, monkeypatch
):
    """JAX shows -1 for what a backend leaves out, and TPUs count something else."""
    device = mock.Mock(memory_stats=lambda: stats)
    assert profiling.device_memory(device) == expected
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    sample = profiling.sample_memory()
    assert (sample.device_in_use, sample.device_reserved) == expected[::2]


def test_memory_is_measured_with_keys_and_bfloat16_among_the_arguments():
    def fn(key, x):
        return jax.random.normal(key, x.shape, jnp.bfloat16) + x

    memory = profiling.measure(fn, jax.random.key(0), jnp.ones((8, 8), jnp.bfloat16))
    assert memory.peak_rss > 0
