"""What a study writes: JSON with its own checksum; knows no JAX."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxprune import disk
from jaxprune.disk import CorruptFileError

# Names of studies, methods and cells: no separator, and no dot in front.
NAME = re.compile(r"\w[\w.+-]*")


class RunsError(Exception):
    """A runs folder that can't be used as it is; its text is for the user."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Name the folder and the remedy where the disk does not take what is written.

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
    """Write JSON with its checksum, completely or not at all."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    with disk.atomic_write(path) as file:
        file.write(json.dumps({**plain, "checksum": _seal(plain)}, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, without its checksum.

    Raises:
        CorruptFileError: if it is not what was written.
    """
    try:
        plain = json.loads(path.read_bytes())
    except (ValueError, IsADirectoryError) as error:
        raise CorruptFileError(path, "it is not JSON") from error
    if not isinstance(plain, dict) or plain.pop("checksum", None) != _seal(plain):
        raise CorruptFileError(path, "its checksum differs")
    return plain


def _seal(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
