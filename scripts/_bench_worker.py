"""A process of bench.py: prepares one work, then does it once for every line it reads."""

import importlib
import sys
import time
from pathlib import Path


def serve(side: str, work: str) -> None:
    """Do the work once unasked, to compile and warm up, then once a line.

    Prints "ready", the seconds of each, and at the end the most memory it held, in MB.
    """
    module = importlib.import_module(f"_bench_{side}")
    sys.path.pop(0)  # profile.py here would hide Python's own, which PyTorch imports
    call = module.WORKS[work]()
    module.wait(call())
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        module.wait(call())
        print(time.perf_counter() - began, flush=True)
    # Not ru_maxrss: that of a process counts its parent's at the fork.
    status = Path("/proc/self/status").read_text()
    kilobytes = status.partition("VmHWM:")[2].split()[0]
    print(int(kilobytes) * 1024 / 1e6, flush=True)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except KeyboardInterrupt:  # the parent says so
        sys.exit(130)
