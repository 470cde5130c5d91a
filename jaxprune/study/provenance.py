"""What produced a record: versions, device, commit and time."""

import datetime
import functools
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import jaxprune
from jaxprune import profiling


@functools.cache
def describe() -> dict[str, Any]:
    """Return the versions, the device, the commit and the time."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "jaxprune": jaxprune.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        **profiling.describe(),
        "commit": _commit(),
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the commit of this checkout, with + if a file differs; None outside one."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
