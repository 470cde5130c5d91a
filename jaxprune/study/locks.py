"""One process at a time for each stage, cell and shared file of a runs folder.

runs/<study>/locks/<name>.lock   locked by the process that works on it
runs/<study>/locks/<name>.owner  that process, for messages

The system releases the locks of a process that ends in any way, so that none is ever stale.
"""

import contextlib
import errno
import json
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

from jaxprune.study.files import RunsError


class BusyError(Exception):
    """Another process has a lock; the text names it."""


def _describe(owner: Path) -> str:
    try:
        process = json.loads(owner.read_text())
        return f"process {process['pid']} on {process['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # being written or deleted
        return "another process"


@contextlib.contextmanager
def lock(folder: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes out.

    Args:
        folder: `runs/<study>`.
        name: of what changes.
        wait: whether to wait for the process that has the lock.

    Raises:
        BusyError: if another process has it, and `wait` is not set.
        OSError: if the folder can't be written.
        RunsError: if its disk has no locks.
    """
    place = folder / "locks"
    owner = place / f"{name}.owner"
    # The fallback would be a file that outlives its process.
    file_lock = filelock.FileLock(place / f"{name}.lock", fallback_to_soft=False)
    place.mkdir(parents=True, exist_ok=True)
    try:
        try:
            file_lock.acquire(timeout=0)
        except filelock.Timeout as error:
            busy = f"{_describe(owner)} has the lock of {name}"
            if not wait:
                raise BusyError(busy) from error
            warnings.warn(f"waiting: {busy}", stacklevel=1)
            file_lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        raise RunsError(
            f"the disk of {folder} has no file locks (flock), without which two "
            "processes may overwrite each other's files. Mount it with them, or pass "
            "a folder on another disk with --runs-dir."
        ) from error
    with contextlib.suppress(OSError):  # only messages need it
        owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        file_lock.release()
