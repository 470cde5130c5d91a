"""What all scripts share: the environment, and how a user's slip is answered.

Import it before JAX.
"""

import importlib.metadata
import importlib.util
import logging
import os
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # experiments/ is no part of the installed package

# Otherwise "reserved" is three quarters of a GPU, whatever the network, and the process
# that measures memory finds none left.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# On a CPU XLA is faster without YNNPACK, and holds less memory if it does not plan for
# concurrency (measured: experiments/README.md, "Speed"). It stops at a flag that it does
# not know, so only those versions get them.
CPU_FLAGS = (
    "--xla_cpu_experimental_ynn_fusion_type= "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)
_theirs = os.environ.get("XLA_FLAGS", "")  # with ours, if a script started this one
_file = _theirs[:1] not in ("", "-")  # XLA takes it as the name of a file of flags
_knows = importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11."))
if _knows and not _file and CPU_FLAGS not in _theirs:
    os.environ["XLA_FLAGS"] = f"{CPU_FLAGS} {_theirs}".strip()

# Orbax logs what it raises too; a slip gets one sentence.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _warn(
    message: Warning | str, category: type[Warning], *where: object, **more: object
) -> None:
    """Write what the library warns of as one line, without the line of code."""
    del category, where, more
    print(f"warning: {message}", file=sys.stderr)


warnings.showwarning = _warn

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxprune"

# A second start finds what the first compiled, small programs too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def main(commands: Sequence[Callable[..., Any]], description: str) -> None:
    """Run the command that the arguments name; one sentence and exit code 2 for a slip.

    JAXPRUNE_TRACEBACK=1 shows where a sentence came from.
    """
    import tyro

    from jaxprune.data import DatasetError
    from jaxprune.study.records import RunsError

    config = (tyro.conf.OmitArgPrefixes,)
    # What a batch system sends before it kills ends like Ctrl-C: writes go to their end.
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if len(commands) == 1:
            tyro.cli(commands[0], description=description, config=config)
        else:
            tyro.extras.subcommand_cli_from_dict(
                {command.__name__: command for command in commands},
                description=description,
                config=config,
            )
    except (ValueError, DatasetError, RunsError) as error:
        if os.environ.get("JAXPRUNE_TRACEBACK"):
            raise
        fail(str(error))
    except OSError as error:
        if os.environ.get("JAXPRUNE_TRACEBACK"):
            raise
        fail(
            f"{error.filename or 'a file'}: {error.strerror or error}. Mend that, or pass "
            "another path."
        )
    except (
        OverflowError,
        MemoryError,
        RuntimeError,
        subprocess.SubprocessError,
    ) as error:
        if os.environ.get("JAXPRUNE_TRACEBACK"):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        fail(f"{first} (JAXPRUNE_TRACEBACK=1 shows where this came from)")
    except AssertionError:  # JAX says no more of a platform that has no device
        platforms = os.environ.get("JAX_PLATFORMS")
        if not platforms or os.environ.get("JAXPRUNE_TRACEBACK"):
            raise
        fail(
            f"JAX finds no device for JAX_PLATFORMS={platforms}. Unset it, or mend it."
        )
    except KeyboardInterrupt as stop:
        _leave((*_came, *stop.args, signal.SIGINT)[0])


_came: list[int] = []


def _stop(number: int, frame: object) -> None:
    """Raise in the main thread; again, where a callback of JAX swallows what it raised."""
    del frame
    _came.append(number)
    signal.signal(signal.SIGALRM, lambda again, frame: _stop(number, frame))
    signal.alarm(2)
    raise KeyboardInterrupt(number)


def _leave(number: int, frame: object = None) -> NoReturn:
    """Say how a run ended by a signal, and how a study or a pruning is resumed."""
    del frame
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    script, *arguments = sys.argv
    resumes = Path(script).stem == "prune" or (
        Path(script).stem == "study"
        and "run" in arguments
        and "--plan" not in arguments
    )
    how = f"; what was finished is whole, and this resumes it: {command}"
    print(f"\nstopped{how if resumes else ''}", file=sys.stderr, flush=True)
    # Threads of the libraries below may crash an orderly exit.
    os._exit(128 + number)


# Until main() has something to finish, such as while JAX is imported.
signal.signal(signal.SIGINT, _leave)
signal.signal(signal.SIGTERM, _leave)


def environment() -> dict[str, str]:
    """Return what a worker elsewhere has to know of this environment."""
    ours = ("JAX_", "XLA_", "TF_CPP_")
    return {name: held for name, held in os.environ.items() if name.startswith(ours)}


def fail(sentence: str) -> NoReturn:
    """Print one sentence and leave with exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if importlib.util.find_spec("tyro") is None:
    fail("the scripts need tyro, which is not installed. Run: pip install '.[study]'")


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written before the work, not after it; make nothing.

    Raises:
        ValueError: if it is a folder, or its place can't be written.
    """
    if not path.name or path.is_dir():
        raise ValueError(f"'{path}' is a folder. Pass the name of a file to write.")
    there = path
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK) or (there != path and not there.is_dir()):
        raise ValueError(
            f"{path} can't be written, because of {there}. Pass another file."
        )


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
