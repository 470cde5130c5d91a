"""How much memory a call takes, read in a process that does nothing else.

XLA's peak counts from the start of the process and can't be reset, so each measurement
starts a fresh one. The program goes there as StableHLO, so that neither the library
nor the data of this process count.
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
import numpy as np
from jax import export


class Memory(NamedTuple):
    """Megabytes (1e6 bytes); None where the backend is silent.

    rss, peak_rss: of the fresh process, after the calls and at their highest (outside
    Linux compilation counts too); idle_rss: with JAX started but before anything was
    loaded; machine_percent: share of the whole machine's memory in use, by whatever
    process; device_*: of the allocator, see DeviceMemory;
    arguments, outputs, temporaries, code: what XLA's compiler says the program needs.
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

    Args:
        fn: the function; exported as StableHLO.
        args: arrays or trees of them; copied to the other process.
        calls: how often to call it there.

    Returns:
        Megabytes, some None.

    Raises:
        RuntimeError: if the other process fails, with the end of what it said, or the
            temporary folder takes no more.

    Example:
        >>> measure(lambda x: x @ x, jax.numpy.ones((64, 64))).peak_rss > 0
        True
    """
    return start_measure(fn, *args, calls=calls)()


def start_measure(fn: Callable[..., Any], *args: Any, calls: int = 3) -> Callable[[], Memory]:
    """Begin to measure, so that this process may go on with work that is not timed.

    Args:
        fn: as in `measure`.
        args: as in `measure`.
        calls: as in `measure`.

    Returns:
        A function that waits for the other process and returns the figures.

    Example:
        >>> wait = start_measure(lambda x: x + 1, jax.numpy.ones(8))
        >>> wait().peak_rss > 0
        True
    """
    leaves, structure = jax.tree.flatten(args)
    exported = export.export(jax.jit(lambda *flat: fn(*structure.unflatten(flat))))(
        *leaves
    )
    folder = tempfile.TemporaryDirectory(prefix="jaxprune-", ignore_cleanup_errors=True)
    try:
        (Path(folder.name) / "program").write_bytes(bytes(exported.serialize()))
        for i, leaf in enumerate(leaves):
            held = np.asarray(leaf)
            np.save(Path(folder.name) / f"{i}.npy", held, allow_pickle=False)
    except OSError as error:
        raise RuntimeError(
            f"{folder.name} does not hold what the measuring process needs "
            f"({error.strerror or error}). Make room there, or set TMPDIR to another folder."
        ) from error
    # The same kind of device; an accelerator is what a process finds by itself.
    platform = {"JAX_PLATFORMS": "cpu"} if jax.default_backend() == "cpu" else {}
    # Closed with this process, however it ends; then that one ends too.
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxprune.profiling._fresh", folder.name, str(calls)],
        env={
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a hit would take less memory
            **platform,
        },
        start_new_session=True,  # Ctrl-C is for this process, and the pipe tells that one
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)

    def wait() -> Memory:
        with folder, open(ours, "wb"):
            printed, complaint = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(
                "the process that measures memory failed, so there is no figure:\n"
                + complaint[-2000:]
            )
        return Memory(**json.loads(printed.splitlines()[-1]))

    return wait
