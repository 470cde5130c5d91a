"""Atomic writes, checksums, and corrupt files, which are quarantined; imports no JAX."""

import contextlib
import hashlib
import itertools
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


class CorruptFileError(ValueError):
    """A file or folder that differs from what was written.

    Attributes:
        path: the file or folder.
        reason: how the corruption was detected.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(
            f"{path} is corrupt ({reason}). Delete it and rerun what wrote it."
        )
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, so that the error crosses processes."""
        return type(self), (self.path, self.reason)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`, and rename it there once it is on disk.

    Args:
        path: the file to write; an existing one is replaced.

    Yields:
        The open file. If writing fails, the temporary file is removed.

    Raises:
        FileNotFoundError: if there is no folder for the file.
        IsADirectoryError: if `path` is a folder.
        OSError: if the file can't be written; an existing one stays.

    Example:
        >>> import tempfile
        >>> with atomic_write(path := Path(tempfile.mkdtemp()) / "note") as file:
        ...     _ = file.write(b"whole")
        >>> path.read_text()
        'whole'
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder. Pass a file name in it.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"folder '{path.parent}' does not exist, so that {path.name} can't be written "
            "there. Create it, or pass another path."
        )
    writer = f"{platform.node()}.{os.getpid()}"
    partial = path.with_name(f".{path.name}.{writer}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename = str(path)  # the one that the caller knows
        raise
    finally:
        with contextlib.suppress(OSError):  # the first error says more
            partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> checksum(path)[:8]
        'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_quarantined(path: Path) -> bool:
    """Return whether a file or folder, or one that it is in, has a name of `quarantine`.

    Args:
        path: the file or folder.

    Example:
        >>> is_quarantined(Path("stages/1f.corrupt2/arrays"))
        True
    """
    return any(".corrupt" in part for part in path.parts)


def quarantine(path: Path) -> Path:
    """Rename a corrupt file or folder, so that it can be regenerated; warn.

    Args:
        path: the file or folder.

    Returns:
        Its new path, beside the old one.
    """
    names = (path.with_name(f"{path.name}.corrupt{n or ''}") for n in itertools.count())
    new_path = next(name for name in names if not name.exists())
    path.rename(new_path)
    warnings.warn(
        f"{path} is corrupt or incomplete; it was renamed to {new_path.name}",
        stacklevel=2,
    )
    return new_path
