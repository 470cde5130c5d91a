"""What all scripts share: the environment, error messages and signals.

Import it before JAX.
"""

import importlib.metadata
import importlib.util
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # experiments/ is not part of the installed package

# With preallocation, JAX reserves three quarters of a GPU for any network, and the process
# that measures memory finds none left.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# On a CPU, XLA is faster without YNNPACK, and uses less memory if it does not schedule for
# concurrency (measured: experiments/speed.md, "XLA flags on a CPU"). XLA exits at a flag
# that it does not know, so only versions that know these get them.
CPU_FLAGS = (
    "--xla_cpu_experimental_ynn_fusion_type= "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)
_flags = os.environ.get("XLA_FLAGS", "")  # ours are in it if a script started this one
_is_file = _flags[:1] not in ("", "-")  # XLA takes it as the name of a file of flags
_knows_flags = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11."))
if _knows_flags and not _is_file and CPU_FLAGS not in _flags:
    os.environ["XLA_FLAGS"] = f"{CPU_FLAGS} {_flags}".strip()

# Orbax also logs the errors that it raises, and users should read one sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _show_warning(
    message: Warning | str, category: type[Warning], *where: object, **more: object
) -> None:
    """Print a warning of the library as one line, without the line of code."""
    del category, where, more
    print(f"warning: {message}", file=sys.stderr)


warnings.showwarning = _show_warning

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxprune"

# A second start reuses the compiled programs of the first, small ones included.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Optional packages by the name they are imported by, and the extras that install them.
EXTRAS: Mapping[str, str] = {
    "PIL": "study",
    "array_record": "study",
    "importlib_resources": "study",
    "matplotlib": "study",
    "mnist1d": "study",
    "polars": "study",
    "ray": "scale",
    "rich": "study",
    "sklearn": "study",
    "tensorflow": "study,prepare",
    "tensorflow_datasets": "study",
    "torch": "bench",
    "tyro": "study",
}


def missing_extra(error: ImportError) -> str | None:
    """Return the message that names the extra of a missing package, or None."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return f"{package} is not installed. Run: pip install 'jaxprune[{EXTRAS[package]}]'"


def check_installed(package: str) -> None:
    """Check that a package can be imported, without importing it.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)


def main(commands: Sequence[Callable[..., Any]], description: str) -> None:
    """Run the command that the arguments select.

    Invalid arguments and expected failures end with one sentence and exit code 2. With
    JAXPRUNE_TRACEBACK=1 they end with the traceback.
    """
    import tyro

    config = (tyro.conf.OmitArgPrefixes,)
    # Batch systems send SIGTERM before they kill.
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if len(commands) == 1:
            tyro.cli(commands[0], description=description, config=config)
        else:
            tyro.extras.subcommand_cli_from_dict(
                {command.__name__.rstrip("_"): command for command in commands},
                description=description,
                config=config,
            )
    except KeyboardInterrupt as interrupt:
        _leave((*_received, *interrupt.args, signal.SIGINT)[0])
    except Exception as error:
        message = _message(error)
        if message is None or os.environ.get("JAXPRUNE_TRACEBACK"):
            raise
        fail(message)
    finally:
        signal.alarm(0)  # the command ended before an interrupt was raised again


def _message(error: Exception) -> str | None:
    """Return one sentence for an expected error; None for an error in the code."""
    from jaxprune.data import DatasetError
    from jaxprune.study.records import RunsError

    if isinstance(error, ValueError | DatasetError | RunsError):
        return str(error)
    if isinstance(error, ImportError):
        return missing_extra(error)
    if isinstance(error, OSError):
        if error.errno is None:  # raised by jaxprune, not by the system
            return str(error)
        return (
            f"{error.filename or 'a file'}: {error.strerror or error}. Fix that, or pass "
            "another path."
        )
    kinds = OverflowError | MemoryError | RuntimeError | subprocess.SubprocessError
    if isinstance(error, kinds):
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return f"{first_line} (JAXPRUNE_TRACEBACK=1 shows the traceback)"
    platforms = os.environ.get("JAX_PLATFORMS")
    if isinstance(error, AssertionError) and platforms:
        # JAX asserts, without a message, that a platform has a device.
        return f"JAX found no device for JAX_PLATFORMS={platforms}. Unset it, or correct it."
    return None


_received: list[int] = []


def _stop(number: int, frame: object) -> None:
    """Raise KeyboardInterrupt in the main thread.

    A callback of JAX may swallow it, so it is raised again after 2 seconds.
    """
    del frame
    _received.append(number)
    signal.signal(signal.SIGALRM, lambda alarm, frame: _stop(number, frame))
    signal.alarm(2)
    raise KeyboardInterrupt(number)


def _leave(number: int, frame: object = None) -> NoReturn:
    """Exit after a signal; print the command that resumes a study or a pruning."""
    del frame
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    script, *arguments = sys.argv
    is_resumable = Path(script).stem == "prune" or (
        Path(script).stem == "study"
        and "run" in arguments
        and not {"--plan", "--pack"} & {*arguments}
    )
    hint = f"; finished work is complete. To resume: {command}" if is_resumable else ""
    print(f"\nstopped{hint}", file=sys.stderr, flush=True)
    # Library threads may crash during a normal exit.
    os._exit(128 + number)


# Until main() runs, such as while JAX is imported, there is nothing to complete.
signal.signal(signal.SIGINT, _leave)
signal.signal(signal.SIGTERM, _leave)


def environment() -> dict[str, str]:
    """Return the environment variables that a worker on another machine needs."""
    prefixes = ("JAX_", "XLA_", "TF_CPP_")
    return {
        name: value for name, value in os.environ.items() if name.startswith(prefixes)
    }


def fail(sentence: str) -> NoReturn:
    """Print one sentence and exit with code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


# Scripts import these two at the top, before main() can catch anything.
for _package in ("tyro", "rich"):
    try:
        check_installed(_package)
    except ModuleNotFoundError as _error:
        fail(str(missing_extra(_error)))


def compression(c: float | None, density: float | None) -> float:
    """Return the compression exponent that --c or --density asks for; 1 without both.

    Raises:
        ValueError: if both are given, or one is out of range.
    """
    if c is not None and density is not None:
        raise ValueError(
            f"--c and --density are two ways to set one density; got --c {c:g} and "
            f"--density {density:g}. Pass one of them."
        )
    if density is not None:
        if not 0 < density <= 1:
            raise ValueError(
                "--density is the fraction of prunable weights to keep, in (0, 1]; got "
                f"{density:g}. For a sparsity of s, pass 1 - s."
            )
        return abs(math.log10(density))
    if c is None:
        return 1.0
    if not 0 <= c < 300:
        raise ValueError(
            f"--c keeps 10**-c of the prunable weights and lies in [0, 300); got {c:g}. "
            "Pass 1 for a tenth of the weights, or --density 0.1."
        )
    return c


def check_writable(path: Path) -> None:
    """Check before the work that a file can be written after it; create nothing.

    Raises:
        ValueError: if the path is a folder, or its folder cannot be written.
    """
    if not path.name or path.is_dir():
        raise ValueError(f"'{path}' is a folder. Pass the name of a file to write.")
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK) or (existing != path and not existing.is_dir()):
        raise ValueError(
            f"{path} cannot be written: {existing} is not a writable folder or "
            "file. Pass another path."
        )


def write_text(path: Path, text: str) -> None:
    """Write a file; create its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
