"""Measure the cost of a network: multiply-accumulates, time and memory."""

from jaxprune.profiling.device import (
    DeviceMemory as DeviceMemory,
    MemorySample as MemorySample,
    describe as describe,
    device_memory as device_memory,
    maximum as maximum,
    sample_memory as sample_memory,
)
from jaxprune.profiling.flops import kept_macs as kept_macs, macs as macs
from jaxprune.profiling.latency import (
    Latency as Latency,
    interleaved as interleaved,
    latency as latency,
    seconds as seconds,
)
from jaxprune.profiling.memory import (
    Memory as Memory,
    measure as measure,
    start_measure as start_measure,
)
