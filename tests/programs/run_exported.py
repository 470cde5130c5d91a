"""Run an exported program without the library.

    python -m tests.programs.run_exported PROGRAM INPUTS OUTPUTS

PROGRAM was serialized by jax.export. INPUTS is an npy file, and OUTPUTS is written.
"""

import sys
from pathlib import Path

import numpy as np
from jax import export


def main(program: str, inputs: str, outputs: str) -> None:
    """Call the program, and check that no module of the library was imported."""
    exported = export.deserialize(bytearray(Path(program).read_bytes()))
    np.save(outputs, exported.call(np.load(inputs)))
    assert not any(name.startswith(("jaxprune", "flax")) for name in sys.modules)


if __name__ == "__main__":
    main(*sys.argv[1:])
