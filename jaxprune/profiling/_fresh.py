"""The subprocess of `memory.measure`: run a program and print its memory use as JSON.

    python -m jaxprune.profiling._fresh FOLDER CALLS [compile]

With `compile`, it compiles first, starts again, and reads the compiled program from a cache.
On a GPU, XLA tries kernels while it compiles, and what these allocate would be the peak.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import psutil
from jax import export

from jaxprune.profiling import device


def _end_with_parent(folder: Path) -> None:
    """Wait until the parent process has ended, then delete the folder and exit."""
    os.read(0, 1)  # returns when the parent's end of the pipe closes
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(folder: Path, calls: int, *, is_compiler: bool) -> None:
    """Load the program and its arguments, call it, and print one line of JSON."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    cache = folder / "compiled"
    if is_compiler or cache.exists():
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.block_until_ready(jax.numpy.zeros(1))  # starts the backend
    idle = psutil.Process().memory_info().rss
    exported = export.deserialize(bytearray((folder / "program").read_bytes()))
    count = len(list(folder.glob("*.npy")))
    args = [jax.device_put(np.load(folder / f"{i}.npy")) for i in range(count)]
    compiled = jax.jit(exported.call).lower(*args).compile()
    if is_compiler:
        cache.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "jaxprune.profiling._fresh"]
        os.execv(sys.executable, [*command, str(folder), str(calls)])
    # Delete it now: the parent may end long after this process.
    shutil.rmtree(folder, ignore_errors=True)
    _reset_peak()
    for _ in range(calls):
        jax.block_until_ready(compiled(*args))
    analysis = compiled.memory_analysis()
    device_memory = device.device_memory()

    def compiler_estimate(name: str) -> float | None:
        value = getattr(analysis, f"{name}_size_in_bytes", None)
        return None if value is None else value / 1e6

    print(
        json.dumps(
            {
                "rss": psutil.Process().memory_info().rss / 1e6,
                "peak_rss": _peak_rss(),
                "idle_rss": idle / 1e6,
                "machine_percent": psutil.virtual_memory().percent,
                "device_in_use": device_memory.in_use,
                "device_peak": device_memory.peak,
                "device_reserved": device_memory.reserved,
                "arguments": compiler_estimate("argument"),
                "outputs": compiler_estimate("output"),
                "temporaries": compiler_estimate("temp"),
                "code": compiler_estimate("generated_code"),
            }
        )
    )


def _reset_peak() -> None:
    """Reset the peak, so that it excludes compilation; only Linux supports this."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        # macOS reports bytes, other systems kibibytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), is_compiler="compile" in sys.argv[3:])
