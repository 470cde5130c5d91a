"""Measure the memory of a call in a fresh process that does nothing else.

XLA's peak counts from the start of the process and can't be reset, so each measurement
starts a new process. The program is sent there as StableHLO, so that neither the library
nor the data of this process count. On an accelerator the new process compiles, and starts
again to measure, since compiling takes memory of the device too.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxprune import tree


class Memory(NamedTuple):
    """Memory of a call in a fresh process; None where the backend reports no statistics.

    All fields except `machine_percent` are in megabytes (1e6 bytes).

    Attributes:
        rss: resident set size of the process after the calls.
        peak_rss: highest resident set size during the calls; outside Linux, during
            compilation too.
        idle_rss: resident set size after JAX has started, before anything is loaded.
        machine_percent: share of the whole machine's memory that all processes use
            together, in percent.
        device_in_use: see `DeviceMemory.in_use`.
        device_peak: see `DeviceMemory.peak`.
        device_reserved: see `DeviceMemory.reserved`.
        arguments: memory of the arguments, by XLA's compiler.
        outputs: memory of the outputs, by XLA's compiler.
        temporaries: memory of temporary buffers, by XLA's compiler.
        code: size of the generated code, by XLA's compiler.
    """

    rss: float
    peak_rss: float
    idle_rss: float
    machine_percent: float
    device_in_use: float | None
    device_peak: float | None
    device_reserved: float | None
    arguments: float | None
    outputs: float | None
    temporaries: float | None
    code: float | None


def measure(fn: Callable[..., Any], *args: Any, calls: int = 3) -> Memory:
    """Measure the memory of `fn(*args)` in a fresh process on the same kind of device.

    The device must have room for it beside this process: start this one with
    XLA_PYTHON_CLIENT_PREALLOCATE=false, or JAX takes three quarters of a GPU for it.

    Args:
        fn: the function; exported as StableHLO.
        args: arrays or trees of arrays; copied to the other process.
        calls: number of calls there.

    Returns:
        The memory, mostly in megabytes; None where the backend reports no statistics.

    Raises:
        RuntimeError: if the other process fails (the message includes the end of its error
            output), or the temporary folder is full.

    Example:
        >>> measure(lambda x: x @ x, jax.numpy.ones((64, 64))).peak_rss > 0
        True
    """
    return start_measure(fn, *args, calls=calls)()


def _to_plain(leaf: Any) -> Any:
    """Turn a key into its words, and a type that NumPy can't store into integers."""
    leaf = jnp.asarray(leaf)
    if tree.is_key(leaf):
        return jax.random.key_data(leaf)
    if leaf.dtype.kind == "V":  # bfloat16 and the 8-bit floats
        return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    return leaf


def _from_plain(plain: Any, leaf: Any) -> Any:
    """Undo `_to_plain`."""
    leaf = jnp.asarray(leaf)
    if tree.is_key(leaf):
        return jax.random.wrap_key_data(plain, impl=jax.random.key_impl(leaf))
    return (
        jax.lax.bitcast_convert_type(plain, leaf.dtype)
        if leaf.dtype.kind == "V"
        else plain
    )


def start_measure(
    fn: Callable[..., Any], *args: Any, calls: int = 3
) -> Callable[[], Memory]:
    """Start `measure` in the background, so that this process can do other work meanwhile.

    Do not time that work: both processes share the machine.

    Args:
        fn: as in `measure`.
        args: as in `measure`.
        calls: as in `measure`.

    Returns:
        A function that waits for the other process and returns the memory.

    Raises:
        RuntimeError: if the temporary folder is full. The returned function raises it if
            the other process fails.

    Example:
        >>> wait = start_measure(lambda x: x + 1, jax.numpy.ones(8))
        >>> wait().peak_rss > 0
        True
    """
    leaves, structure = jax.tree.flatten(args)

    def run(*plain: Any) -> Any:
        return fn(*structure.unflatten(map(_from_plain, plain, leaves)))

    exported = export.export(jax.jit(run))(*map(_to_plain, leaves))
    folder = tempfile.TemporaryDirectory(prefix="jaxprune-", ignore_cleanup_errors=True)
    try:
        (Path(folder.name) / "program").write_bytes(bytes(exported.serialize()))
        for i, leaf in enumerate(leaves):
            array = np.asarray(_to_plain(leaf))
            np.save(Path(folder.name) / f"{i}.npy", array, allow_pickle=False)
    except OSError as error:
        folder.cleanup()
        raise RuntimeError(
            "the program and its arguments for the process that measures memory can't be "
            f"written to {folder.name} ({error.strerror or error}). Free disk space there, "
            "or set TMPDIR to another folder."
        ) from error
    # The same kind of device. JAX selects an accelerator by default.
    is_cpu = jax.default_backend() == "cpu"
    platform = {"JAX_PLATFORMS": "cpu"} if is_cpu else {}
    steps = [] if is_cpu else ["compile"]
    # The pipe closes when this process ends, however it ends. The subprocess then exits.
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jaxprune.profiling._fresh"),
            *(folder.name, str(calls), *steps),
        ],
        env={
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cache hit uses less memory
            **platform,
        },
        start_new_session=True,  # Ctrl-C reaches this process only; the pipe ends the other
        stdin=read_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(read_end)

    def wait() -> Memory:
        with folder, open(write_end, "wb"):
            output, errors = process.communicate()
        if "RESOURCE_EXHAUSTED" in errors and process.returncode != 0:
            raise RuntimeError(
                "the device has no memory left for the process that measures memory. Start "
                "this one with XLA_PYTHON_CLIENT_PREALLOCATE=false, or pass fewer examples; "
                f"its error output ends with:\n{errors[-2000:]}"
            )
        if process.returncode != 0:
            raise RuntimeError(
                "the process that measures memory failed; its error output ends with:\n"
                + errors[-2000:]
            )
        return Memory(**json.loads(output.splitlines()[-1]))

    return wait
