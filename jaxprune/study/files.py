"""Files that are whole or not there, and that show whether they are what was written.

Each is written beside its place and renamed, and JSON carries its own checksum. Knows no
JAX.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

Made = TypeVar("Made")


class RunsError(Exception):
    """A runs folder that can't be used as it is; its text is for the user."""


class DamagedError(RunsError):
    """A file that is not what was written. `path` names what is to be made anew."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} is damaged ({why}). Run the study again: that keeps it aside and makes "
            "it anew."
        )
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes."""
        return type(self), (self.path, self.why)


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """Say what to do where the disk does not take what is written to a folder.

    Raises:
        RunsError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunsError(
            f"{folder} can't be written ({error.strerror or error}). All that was finished "
            "before is whole. Make room or mend the disk, and run the same again; or pass "
            "another folder with --runs-dir."
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`, and rename it there once it is whole and on disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with its checksum, whole or not at all."""
    held = json.loads(json.dumps(value, allow_nan=False))
    with replacing(path) as file:
        file.write(json.dumps({**held, "checksum": _seal(held)}, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, its checksum left out.

    Raises:
        DamagedError: if it is not what was written.
    """
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(path, "it is no JSON") from error
    if not isinstance(held, dict) or held.pop("checksum", None) != _seal(held):
        raise DamagedError(path, "its checksum is another")
    return held


def _seal(held: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(write: Callable[[], Made]) -> Made:
    """Write something to its end, even where a signal stops this process meanwhile.

    It runs in a thread of its own, and Python raises KeyboardInterrupt in the main one,
    which waits here for the end of the thread.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(write).result()
