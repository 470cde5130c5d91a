"""One process at a time for each stage, cell and common file of a runs folder.

runs/<study>/locks/<name>.lock   held by the process that makes it
runs/<study>/locks/<name>.owner  that process, for people

The system gives up a lock with the process that held it, however that ended, so that no
lock is ever stale. Of the processes of one run on several hosts the first holds it for all.
"""

import contextlib
import errno
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax

from jaxprune import sharding
from jaxprune.study.files import RunsError


class BusyError(Exception):
    """Another process holds a lock; its text says which."""


def _told(owner: Path) -> str:
    try:
        read = json.loads(owner.read_text())
        return f"process {read['pid']} on {read['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it came or went just now
        return "another process"


def take(folder: Path, name: str, *, wait: bool = True) -> Callable[[], None]:
    """Take a lock.

    Args:
        folder: `runs/<study>`.
        name: of what changes.
        wait: for the process that holds it; several hosts always do.

    Returns:
        What gives it back, however often it is called.

    Raises:
        BusyError: if another process holds it, and `wait` is not set.
        OSError: if the folder can't be written.
        RunsError: if its disk has no locks.
    """
    if not sharding.is_first_process():
        return lambda: None
    place = folder / "locks"
    owner = place / f"{name}.owner"
    # Not the fallback, a file that outlives its process.
    lock = filelock.FileLock(place / f"{name}.lock", fallback_to_soft=False)
    place.mkdir(parents=True, exist_ok=True)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            busy = f"{_told(owner)} makes {name}"
            if not (wait or jax.process_count() > 1):
                raise BusyError(busy) from error
            warnings.warn(f"waiting: {busy}", stacklevel=1)
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        raise RunsError(
            f"the disk of {folder} has no file locks (flock), without which two "
            "processes may spoil each other's work. Mount it with them, or pass "
            "a folder on another disk with --runs-dir."
        ) from error
    with contextlib.suppress(OSError):  # who has a lock need not be known
        owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))

    def release() -> None:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                owner.unlink()
            lock.release()

    return release


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Keep other processes out, waiting for the one that is in.

    Args:
        folder: `runs/<study>`.
        name: of what changes.
    """
    release = take(folder, name)
    try:
        yield
    finally:
        release()
