"""Functions of the user as values that ids can hash: named by version and source."""

import copyreg
import dataclasses
import functools
import hashlib
import inspect
import pickle
import sys
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
    """Call code of the user, or ours that calls it.

    Args:
        function: without arguments.
        name: what runs, for an error.

    Raises:
        CodeError: if code of the user raises an exception; with its file and line.
    """
    try:
        return function()
    except CodeError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error)
        if place is None and not isinstance(error, TypeError):
            raise  # an error of ours
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else repr(error)
        what = f"{name} ({place}) raised {reason}" if place else f"{name}: {lines[0]}"
        raise CodeError(f"{what} (JAXPRUNE_TRACEBACK=1 shows the traceback)") from error


def digest(value: Any, name: str) -> str:
    """Return the hash of a value and of all that it uses; see `of`.

    Args:
        value: a function, arrays, numbers, texts, or a tree of them.
        name: of the value, for an error.

    Raises:
        CodeError: if a source can't be read, or a value that it uses can't be hashed.
    """
    result = hashlib.sha256()
    for part in _parts(value, name, {}):
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


def _place(error: BaseException) -> str | None:
    """Return the file and line of the user's code that an error comes from, if it does."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    own = [(file, line) for file, line in places if _is_own(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else None


@functools.cache
def _package_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {sysconfig.get_paths()[name] for name in names}
    return (*folders, str(Path(__file__).parents[1]))


def _is_own(file: str) -> bool:
    """Return whether a file is the user's, not of an installed package or of this one."""
    is_installed = "site-packages" in file or file.startswith(_package_folders())
    return not file.startswith("<frozen") and not is_installed


def _parts(value: Any, where: str, seen: dict[int, Any]) -> Iterator[str]:
    """Yield the texts that describe a value and all that it uses."""
    if value is None or isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, Code | types.ModuleType):
        yield value.name if isinstance(value, Code) else value.__name__
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(cast(Any, value)) if is_key else value)
        yield f"{array.dtype}{array.shape}"
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    elif type(value) is dict:
        for item in value.items():
            yield from _parts(item, where, seen)
    elif type(value) in (list, tuple):
        yield type(value).__name__
        for item in value:
            yield from _parts(item, where, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted("".join(_parts(item, where, {})) for item in value)
    elif id(value) in seen:
        yield type(value).__qualname__
    else:
        seen[id(value)] = value  # keeps it alive, so that no other object gets its id
        if isinstance(value, types.FunctionType):
            yield from _function_parts(value, where, seen)
        elif isinstance(value, type):
            yield from _class_parts(value, where, seen)
        else:
            yield from _object_parts(value, where, seen)


_PLAIN = (bool, int, float, complex, str, bytes, types.EllipsisType, range, slice)


def _source(value: Any, where: str) -> str:
    """Return the source of a function or class of the user."""
    try:
        if getattr(value, "co_name", None) == "<lambda>":
            return _lambda_source(value)
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError) as error:
        raise CodeError(
            f"a source that {where} uses can't be read. Define functions and classes in a "
            "file."
        ) from error


def _lambda_source(code: types.CodeType) -> str:
    """Return the arguments and the expression of a lambda; a line may have several."""
    lines, _ = inspect.findsource(code)
    places: Any = [place for place in code.co_positions() if None not in place]
    (first, start), (last, end) = (
        min((place[0], place[2]) for place in places),
        max((place[1], place[3]) for place in places),
    )
    body = [line.encode() for line in lines[first - 1 : last]]
    body[-1] = body[-1][:end]
    body[0] = body[0][start:]
    return f"{code.co_varnames}: {b''.join(body).decode()}"


def _function_parts(
    function: types.FunctionType, where: str, seen: dict[int, Any]
) -> Iterator[str]:
    """Yield what describes a function: source, defaults, closure and globals.

    A function that a package has wrapped, such as `jax.grad(f)`, has f in its closure.
    """
    code = function.__code__
    yield code.co_qualname
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, where, seen)
    if not _is_own(code.co_filename):
        yield function.__globals__["__name__"]
        return
    yield _source(code, where)
    yield from _parts((function.__defaults__, function.__kwdefaults__), where, seen)
    for name in sorted(_names(code)):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], f"{where}: {name}", seen)


def _names(code: types.CodeType) -> set[str]:
    """Return all names that a function and the functions in it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _class_parts(kind: type, where: str, seen: dict[int, Any]) -> Iterator[str]:
    """Yield what describes a class: its source, its bases, and what its methods use."""
    yield kind.__qualname__
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is None or not _is_own(file):
        yield kind.__module__
        return
    yield _source(kind, where)
    yield from _parts(kind.__bases__, where, seen)
    for member in vars(kind).values():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType):
            yield from _parts(function, where, seen)


def _object_parts(value: Any, where: str, seen: dict[int, Any]) -> Iterator[str]:
    """Yield what describes any other object: what pickle would write, and its class."""
    if isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__), where, seen)
        return
    if hasattr(value, "__wrapped__"):  # such as jax.jit(f); its options are attributes
        options = {k: v for k, v in vars(value).items() if not k.startswith("__")}
        yield type(value).__qualname__
        yield from _parts((value.__wrapped__, options), where, seen)
        return
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            pickle.dumps(value)  # it is what this name stands for
    except Exception as error:  # each class has its own
        raise CodeError(
            f"{where} uses a {type(value).__name__}, which can't be hashed. Build it inside "
            "the function, or use arrays, numbers and texts."
        ) from error
    if isinstance(reduced, str):
        yield f"{getattr(value, '__module__', '')}.{reduced}"
        return
    function, arguments, *state = reduced
    yield from _parts((function, arguments), where, seen)
    for part in state:
        items = list(part) if isinstance(part, Iterator) else part
        yield from _parts(items, where, seen)
