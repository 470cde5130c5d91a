"""Files that are whole or not there, and damaged ones, which are kept; knows no JAX."""

import contextlib
import hashlib
import itertools
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


class DamagedError(ValueError):
    """A file or folder that is not what was written. `path` names it, `why` how it shows."""

    def __init__(self, path: str | os.PathLike, why: str) -> None:
        super().__init__(
            f"{path} is damaged ({why}). Run again what wrote it, to another place if it "
            "asks for one; a study keeps what is damaged aside and makes it anew."
        )
        self.path, self.why = Path(path), why

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes."""
        return type(self), (self.path, self.why)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`, and rename it there once it is whole and on disk.

    Args:
        path: of the file; what is there is replaced.

    Yields:
        The open file. Nothing of it is left if writing it fails.
    """
    me = f"{platform.node()}.{os.getpid()}"
    partial = path.with_name(f".{path.name}.{me}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename what is damaged, so that it can be made anew and nothing is lost; warn.

    Args:
        path: a file or folder.

    Returns:
        Its new path, beside the old one.
    """
    names = (path.with_name(f"{path.name}.damaged{n or ''}") for n in itertools.count())
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    warnings.warn(
        f"{path} was damaged; it is kept as {aside.name} and made anew", stacklevel=2
    )
    return aside
