"""A subprocess of the comparison: prepares one task, then runs it once per line of input.

Usage: python -m bench.worker ours snip
"""

import importlib
import sys
import time
from pathlib import Path

MODULES = {
    "ours": "bench.ours",
    "plain": "bench.plain_jax",
    "torch": "bench.torch_side",
}


def serve(side: str, task: str) -> None:
    """Run the task once to compile and warm up, then once per line of input.

    Prints the seconds of each run, the first one included, and at the end the peak memory
    of this process in MB.
    """
    module = importlib.import_module(MODULES[side])
    run = module.TASKS[task]()
    start = time.perf_counter()
    module.wait(run())
    print(time.perf_counter() - start, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        module.wait(run())
        print(time.perf_counter() - start, flush=True)
    # ru_maxrss would include the memory of the parent at the fork.
    status = Path("/proc/self/status").read_text()
    kilobytes = status.partition("VmHWM:")[2].split()[0]
    print(int(kilobytes) * 1024 / 1e6, flush=True)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except KeyboardInterrupt:  # the parent reports it
        sys.exit(130)
