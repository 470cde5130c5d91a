"""What a study writes: JSON that carries its own checksum, to its end; knows no JAX."""

import contextlib
import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxprune import disk
from jaxprune.disk import CorruptFileError


class RunsError(Exception):
    """A runs folder that can't be used as it is; its text is for the user."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say what to do where the disk does not take what is written to a folder.

    Raises:
        RunsError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunsError(
            f"{folder} can't be written ({error.strerror or error}). Finished stages "
            "are safe. Check that it is a folder that you may write to, and that the disk "
            "has space; then run the same command again, or pass another --runs-dir."
        ) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with its checksum, whole or not at all."""
    held = json.loads(json.dumps(value, allow_nan=False))
    with disk.atomic_write(path) as file:
        file.write(json.dumps({**held, "checksum": _seal(held)}, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, its checksum left out.

    Raises:
        CorruptFileError: if it is not what was written.
    """
    try:
        held = json.loads(path.read_bytes())
    except (ValueError, IsADirectoryError) as error:
        raise CorruptFileError(path, "it is no JSON") from error
    if not isinstance(held, dict) or held.pop("checksum", None) != _seal(held):
        raise CorruptFileError(path, "its checksum is another")
    return held


def _seal(held: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def stop_handlers() -> dict[int, Any]:
    """Return Python's handlers of the signals that stop a process, by number.

    None in a thread that is not the main one, which alone may set them.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    found = {number: signal.getsignal(number) for number in stops}
    return {number: handler for number, handler in found.items() if handler is not None}


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Put off signals that stop this process until what is begun here is written."""
    came: list[int] = []
    handlers = stop_handlers()
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
