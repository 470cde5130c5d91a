"""Benchmark jaxprune. Without a command, compare it with plain JAX and PyTorch.

Examples:
    python scripts/bench             # every task; extra `study`, and `bench` for PyTorch
    python scripts/bench --only select snip --json bench.json
    python scripts/bench scaling     # time against parameters and cells, with a figure
    python scripts/bench epoch       # training throughput of an accelerator
    python scripts/bench memory      # of inference and training, on an accelerator
    python scripts/bench channels resnet50_nnx    # half the MACs, and what that saves
    python scripts/bench methods     # what each method costs, in forward passes and steps
    python scripts/bench study       # a whole study of digits; 2 minutes
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # scripts/

import _cli

from bench.channels import channels, channels_report  # isort: skip
from bench.compare import compare  # isort: skip
from bench.epoch import epoch

from bench.digits import study  # isort: skip
from bench.memory import memory  # isort: skip
from bench.methods import methods  # isort: skip
from bench.scaling import scaling

COMMANDS = [
    compare, scaling, epoch, memory, channels, channels_report, methods, study,
]  # fmt: skip

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("--") and arguments[0] != "--help"):
        sys.argv.insert(1, "compare")
    _cli.main(COMMANDS, __doc__ or "")
