"""Functions of the user as values that ids can hash: named by version and source."""

import dataclasses
import functools
import hashlib
import inspect
import pickle
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np


class CodeError(ValueError):
    """A function of the user that failed; the message has its name and place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """A function of the user; equal to another of the same name, version and source.

    Attributes:
        function: what is called.
        name: `<name>@<version>-<hash of its source>`; what ids and records contain.
    """

    function: Callable[..., Any]
    name: str

    def __eq__(self, other: object) -> bool:
        """Compare by name, which contains the hash of the source."""
        return isinstance(other, Code) and self.name == other.name

    def __hash__(self) -> int:
        """Return the hash of the name."""
        return hash(self.name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function; an error names it."""
        return call(lambda: self.function(*args, **options), _title(self.function))


def call(function: Callable[[], Any], name: str) -> Any:
    """Call code of the user.

    Args:
        function: without arguments.
        name: of the code, for an error.

    Raises:
        CodeError: if it raises an exception; with the name and the place.
    """
    try:
        return function()
    except CodeError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else repr(error)
        raise CodeError(
            f"{name} ({_place(error)}) raised {reason} (JAXPRUNE_TRACEBACK=1 shows the "
            "traceback)"
        ) from error


def digest(value: Any, name: str) -> str:
    """Return the hash of a value and of all that it uses; see `of`.

    Args:
        value: a function, arrays, numbers, texts, or a tree of them.
        name: of the value, for an error.

    Raises:
        CodeError: if a source can't be read, or a value that it uses can't be hashed.
    """
    result = hashlib.sha256()
    for part in _parts(value, name, set()):
        result.update(part.encode() + b"\0")
    return result.hexdigest()[:12]


def of(function: Callable[..., Any], version: str) -> Code:
    """Name a function by a version and by its source.

    The hash covers the function and all that it uses: functions, classes, constants and
    arrays, also in other files of the user. Of installed packages it covers names and bound
    values, but no source; `version` stands for the rest.

    Args:
        function: a function, class, or functools.partial of one.
        version: the user's own, changed where the source does not show a change.

    Returns:
        The function as a value.

    Raises:
        CodeError: if a source can't be read, or a value that it uses can't be hashed.

    Example:
        >>> import math
        >>> code = of(math.sqrt, "2")
        >>> code(4.0), code.name.startswith("sqrt@2-")
        (2.0, True)
    """
    name = _title(function)
    return Code(function, f"{name}@{version}-{digest(function, name)}")


def _title(function: Any) -> str:
    """Return the short name of a function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _place(error: BaseException) -> str:
    """Return the file and line of the user's code that an error comes from."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [frame for frame in frames if _is_own(frame[0])]
    file, line = (own or frames)[-1]
    return f"{Path(file).name}:{line}"


@functools.cache
def _package_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_paths()[name] for name in names}
    return (*folders, str(Path(__file__).parents[1]))


def _is_own(file: str) -> bool:
    """Return whether a file is the user's, not of an installed package or of this one."""
    is_installed = "site-packages" in file or file.startswith(_package_folders())
    return not file.startswith("<frozen") and not is_installed


def _parts(value: Any, where: str, seen: set[int]) -> Iterator[str]:
    """Yield the texts that describe a value and all that it uses."""
    if isinstance(value, functools.partial):
        yield "partial"
        for part in (value.func, value.args, value.keywords):
            yield from _parts(part, where, seen)
    elif isinstance(value, Code):
        yield value.name
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__func__, where, seen)
        yield from _parts(value.__self__, where, seen)
    elif isinstance(value, type | types.FunctionType):
        yield from _code_parts(value, where, seen)
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(cast(Any, value)) if is_key else value)
        yield f"{array.dtype}{array.shape}"
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(key, where, seen)
            yield from _parts(item, where, seen)
    elif dataclasses.is_dataclass(value):
        yield type(value).__qualname__
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name), where, seen)
    elif isinstance(value, list | tuple):
        yield type(value).__name__
        for item in value:
            yield from _parts(item, where, seen)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value)
    elif callable(value) and hasattr(value, "__wrapped__"):
        yield from _parts(value.__wrapped__, where, seen)
    elif callable(value) and hasattr(value, "__qualname__"):  # built in
        yield f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    else:
        yield from _object_parts(value, where)


def _object_parts(value: Any, where: str) -> Iterator[str]:
    try:
        yield hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception as error:  # each class has its own
        raise CodeError(
            f"{where} uses a {type(value).__name__}, which can't be hashed. Build it inside "
            "the function, or use arrays, numbers and texts."
        ) from error


def _code_parts(value: Any, where: str, seen: set[int]) -> Iterator[str]:
    """Yield the source of a function or class of the user, and of what it uses."""
    value = inspect.unwrap(value)
    yield value.__qualname__
    if id(value) in seen:
        return
    seen.add(id(value))
    try:
        file = inspect.getfile(value)
    except (TypeError, OSError):
        return  # built in
    if not _is_own(file):
        yield value.__module__
        for cell in getattr(value, "__closure__", None) or ():
            yield from _parts(cell.cell_contents, where, seen)
        return
    try:
        yield textwrap.dedent(inspect.getsource(value))
    except OSError as error:
        raise CodeError(
            f"the source of {_title(value)}, which {where} uses, can't be read. Define it in "
            "a file."
        ) from error
    functions = [value]
    if isinstance(value, type):
        own = [base for base in value.__bases__ if base is not object]
        for base in own:
            yield from _parts(base, where, seen)
        functions = [
            getattr(member, "__func__", getattr(member, "fget", member))
            for member in vars(value).values()
        ]
    for function in functions:
        if isinstance(function, types.FunctionType):
            yield from _used(function, where, seen)


def _used(function: types.FunctionType, where: str, seen: set[int]) -> Iterator[str]:
    """Yield what describes the globals, the closure and the defaults of a function."""
    yield from _parts(function.__defaults__, where, seen)
    yield from _parts(function.__kwdefaults__, where, seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, where, seen)
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], f"{where}: {name}", seen)


def _names(code: types.CodeType) -> set[str]:
    """Return all names that a function and the functions in it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))
