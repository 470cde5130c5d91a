"""Functions of the user as values that ids can hash: named by version and source."""

import ast
import contextlib
import copyreg
import dataclasses
import dis
import functools
import hashlib
import importlib.util
import inspect
import linecache
import os
import pickle
import sys
import sysconfig
import textwrap
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
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
        role: what it is in a study, for errors.
    """

    function: Callable[..., Any]
    name: str
    role: str

    def __eq__(self, other: object) -> bool:
        """Compare by name, which contains the hash of the source."""
        return isinstance(other, Code) and self.name == other.name

    def __hash__(self) -> int:
        """Return the hash of the name."""
        return hash(self.name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function; an error names it."""
        name = f"{self.role} {self.title}"
        return call(lambda: self.function(*args, **options), name)

    @property
    def title(self) -> str:
        """Return the name without version and hash."""
        return self.name.partition("@")[0]


def call(function: Callable[[], Any], name: str) -> Any:
    """Call a function, and turn an error in the user's code into one sentence.

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
        files = _trace(error)
        place = next(
            (f"{Path(f).name}:{n}" for f, n in files[::-1] if _is_own(f)), None
        )
        where = f" ({place})" if place else ""
        is_sentence = isinstance(error, ValueError | TypeError) and _is_ours(
            files[-1][0]
        )
        if is_sentence and place:
            raise CodeError(f"{name}{where}: {error}") from error
        if place is None and not isinstance(error, TypeError):
            raise
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else repr(error)
        raise CodeError(
            f"{name}{where} raised {reason} (JAXPRUNE_TRACEBACK=1 shows the traceback)"
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
    for part in _parts(value, name, {}):
        result.update(part.encode() + b"\0")
    return result.hexdigest()[:12]


def of(function: Callable[..., Any], version: str, role: str = "function") -> Code:
    """Name a function by a version and by its source.

    The hash covers the source of the function, and of the user's functions and classes that
    it names, the values of globals, defaults and closures, and the whole file of a module of
    the user that it names. Of installed packages it covers names and bound values, but no
    source; `version` stands for these, and for files that the function reads.

    Args:
        function: a function, class, callable object, or functools.partial of one.
        version: the user's own, changed where the source does not show a change.
        role: what it is in a study, for errors.

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
    return Code(function, f"{name}@{version}-{digest(function, name)}", role)


def _title(function: Any) -> str:
    """Return the short name of a function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _trace(error: BaseException) -> list[tuple[str, int | None]]:
    """Return the files and lines that an error has passed, the innermost last."""
    places: list[tuple[str, int | None]] = []
    trace = error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    return places


_PACKAGE = str(Path(__file__).parents[1])


@functools.cache
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(sysconfig.get_paths()[name] + os.sep for name in names)


def is_own(module: types.ModuleType) -> bool:
    """Return whether a module is the user's, not of an installed package or of this one."""
    return _is_own(getattr(module, "__file__", None))


def _is_ours(file: str) -> bool:
    return file.startswith(_PACKAGE + os.sep)


def _is_own(file: str | None) -> bool:
    """Return whether a file is the user's, not of an installed package or of this one."""
    if file is None or file.startswith("<") or "site-packages" in file:
        return False
    return not file.startswith(_installed()) and not _is_ours(file)


def _parts(value: Any, where: str, seen: dict[int, Any]) -> Iterator[str]:
    """Yield the texts that describe a value and all that it uses."""
    if value is None or isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, Code):
        yield value.name
    elif isinstance(value, weakref.ReferenceType):
        yield from _parts(value(), where, seen)
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(cast(Any, value)) if is_key else value)
        yield f"{array.dtype}{array.shape}"
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    elif type(value) in (dict, list, tuple):
        yield f"{type(value).__name__}{len(value)}"
        for item in value.items() if isinstance(value, dict) else value:
            yield from _parts(item, where, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted("".join(_parts(item, where, {})) for item in value)
    elif id(value) in seen:
        yield type(value).__qualname__
    else:
        seen[id(value)] = value  # keeps it alive, so that no other object gets its id
        if isinstance(value, types.ModuleType):
            yield from _module_parts(value, where, seen)
        elif isinstance(value, types.FunctionType):
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
        if isinstance(value, type):
            _check_is_only(value)
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError, SyntaxError) as error:
        raise CodeError(
            f"a source that {where} uses can't be read. Define functions and classes in a "
            "file."
        ) from error


def _check_is_only(kind: type) -> None:
    """Check that a file has one class of a name; Python finds its source by name."""
    lines, _ = inspect.findsource(kind)
    classes = [
        n for n in ast.walk(ast.parse("".join(lines))) if isinstance(n, ast.ClassDef)
    ]
    if sum(node.name == kind.__name__ for node in classes) > 1:
        raise CodeError(
            f"{inspect.getfile(kind)} has two classes named {kind.__name__}, which can't be "
            "told apart. Give them different names."
        )


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
        yield function.__globals__.get("__name__", "")
        return
    yield _source(code, where)
    yield from _parts((function.__defaults__, function.__kwdefaults__), where, seen)
    yield from _named(_names(code), function.__globals__, where, seen)
    for name in _imported(code):
        spec = None
        with contextlib.suppress(ImportError):  # an optional package
            spec = importlib.util.find_spec(name)
        if spec is not None and _is_own(spec.origin):
            yield from _parts(importlib.import_module(name), where, seen)


def _named(
    names: set[str], scope: Mapping[str, Any], where: str, seen: dict[int, Any]
) -> Iterator[str]:
    """Yield what describes the globals of some names."""
    for name in sorted(names.intersection(scope)):
        yield name
        yield from _parts(scope[name], f"{where}: {name}", seen)


def _module_parts(
    module: types.ModuleType, where: str, seen: dict[int, Any]
) -> Iterator[str]:
    """Yield what describes a module: of the user's, its text and its modules."""
    yield module.__name__
    file = getattr(module, "__file__", None)
    if file is None or not _is_own(file):
        return
    yield "".join(linecache.getlines(file))
    for value in list(vars(module).values()):
        other: Any = value
        if not isinstance(value, types.ModuleType):
            other = sys.modules.get(getattr(value, "__module__", None) or "")
        if other is not None and is_own(other):
            yield from _parts(other, where, seen)


def _names(code: types.CodeType) -> set[str]:
    """Return all names that a function and the functions in it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _imported(code: types.CodeType) -> list[str]:
    """Return the modules that a function imports when it is called."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"]
    names += [name for function in inner for name in _imported(function)]
    return sorted({name for name in names if name})  # relative ones have none


def _class_parts(kind: type, where: str, seen: dict[int, Any]) -> Iterator[str]:
    """Yield what describes a class: its source, its bases, methods and what these use."""
    yield kind.__qualname__
    module = sys.modules.get(kind.__module__)
    if module is None or not is_own(module):
        yield kind.__module__
        return
    source = _source(kind, where)
    yield source
    yield from _parts(kind.__bases__, where, seen)
    names = {
        node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)
    }
    yield from _named(names, vars(module), where, seen)
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
            yield name
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
