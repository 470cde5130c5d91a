"""Measure the cost of a network: multiply-accumulates, time and memory."""

from jaxprune.profiling.device import (
    DeviceMemory,
    MemorySample,
    describe,
    device_memory,
    maximum,
    sample_memory,
)
from jaxprune.profiling.flops import kept_macs, macs
from jaxprune.profiling.latency import (
    Latency,
    interleaved,
    latency,
    seconds,
)
from jaxprune.profiling.memory import (
    Memory,
    measure,
    start_measure,
)

__all__ = [
    "DeviceMemory",
    "Latency",
    "Memory",
    "MemorySample",
    "describe",
    "device_memory",
    "interleaved",
    "kept_macs",
    "latency",
    "macs",
    "maximum",
    "measure",
    "sample_memory",
    "seconds",
    "start_measure",
]
