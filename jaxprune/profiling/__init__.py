"""What a network costs, each figure measured so that it means what it says."""

from jaxprune.profiling.device import (
    DeviceMemory as DeviceMemory,
    Sample as Sample,
    describe as describe,
    device_memory as device_memory,
    highest as highest,
    sample as sample,
)
from jaxprune.profiling.flops import kept_macs as kept_macs, macs as macs
from jaxprune.profiling.latency import (
    Latency as Latency,
    in_turn as in_turn,
    latency as latency,
    seconds as seconds,
)
from jaxprune.profiling.memory import (
    Memory as Memory,
    measure as measure,
    start as start,
)
