"""Parse command lines of scripts/bench, one in each argument, and run none.

    python -m tests.programs.parse_bench "epoch --repeats 2" "channels vgg16"

Prints the name of the command that each selects. Ends as the script does if one is wrong.
"""

import functools
import shlex
import sys

from tests.programs.run_scripts import SCRIPTS

sys.path.insert(0, str(SCRIPTS))

import _cli  # isort: skip
from bench import __main__ as bench  # isort: skip


def named(command):
    """Replace a command by one of the same arguments that prints its name."""

    @functools.wraps(command)
    def run(*args, **options):
        print(command.__name__)

    return run


if __name__ == "__main__":
    for line in sys.argv[1:]:
        sys.argv = ["bench", *shlex.split(line)]
        _cli.main([named(command) for command in bench.COMMANDS], "")
