"""The device and the machine, and the memory that they report."""

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import psutil


class DeviceMemory(NamedTuple):
    """Memory of a device's allocator; None where the backend reports no statistics.

    Attributes:
        in_use: memory of the arrays that exist now, in megabytes (1e6 bytes).
        peak: highest `in_use` since the process started, in megabytes. It can't be reset.
        reserved: memory that the allocator has taken from the device, in megabytes; a TPU
            does not report it.
    """

    in_use: float | None
    peak: float | None
    reserved: float | None


class MemorySample(NamedTuple):
    """Memory at one moment; None where the backend reports no statistics.

    Attributes:
        device_in_use: `DeviceMemory.in_use` of the first device, in megabytes (1e6 bytes).
        device_reserved: `DeviceMemory.reserved` of the first device, in megabytes.
        machine_percent: share of the whole machine's memory that all processes use
            together, in percent.
    """

    device_in_use: float | None
    device_reserved: float | None
    machine_percent: float


def sample_memory() -> MemorySample:
    """Read the memory that is in use now.

    The study reproduced in experiments/poster.py reports this value, sampled between epochs.

    Returns:
        The memory of the first device and of the machine.

    Example:
        >>> 0 < sample_memory().machine_percent <= 100
        True
    """
    memory = device_memory()
    return MemorySample(memory.in_use, memory.reserved, psutil.virtual_memory().percent)


def maximum(samples: Sequence[MemorySample]) -> dict[str, float | None]:
    """Return the maximum of each field over several samples.

    Args:
        samples: one or more samples.

    Returns:
        The maximum by field of `MemorySample`; None where a sample has None.

    Example:
        >>> maximum([MemorySample(1.0, None, 5.0), MemorySample(2.0, None, 4.0)])
        {'device_in_use': 2.0, 'device_reserved': None, 'machine_percent': 5.0}
    """

    def field_maximum(name: str) -> float | None:
        values = [getattr(sample, name) for sample in samples]
        return None if None in values else max(values)

    return {name: field_maximum(name) for name in MemorySample._fields}


def describe() -> dict[str, str | int]:
    """Describe the device and the machine, as context for measurements.

    Returns:
        `platform`, `kind` and number of `devices`; `processor`, `cores` and `ram_gb` of the
        machine, in gigabytes (1e9 bytes).

    Example:
        >>> describe()["platform"]
        'cpu'
    """
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "processor": _processor(),
        "cores": psutil.cpu_count() or 0,
        "ram_gb": round(psutil.virtual_memory().total / 1e9),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line for line in file if line.startswith("model name")]
        return names[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def device_memory(device: Any = None) -> DeviceMemory:
    """Read the memory statistics of a device's allocator.

    `reserved` is only meaningful with XLA_PYTHON_CLIENT_PREALLOCATE=false. Otherwise it is
    the share of the device that JAX preallocates when it starts.

    Args:
        device: a JAX device; None for the first one.

    Returns:
        Megabytes (1e6 bytes); all None on a CPU, whose allocator keeps no statistics.

    Example:
        >>> device_memory().peak is None
        True
    """
    stats = (device or jax.local_devices()[0]).memory_stats() or {}

    def megabytes(name: str) -> float | None:
        value = stats.get(name)
        # JAX fills in -1 where a backend leaves a figure out.
        return None if value is None or value < 0 else value / 1e6

    # Not "bytes_reserved", which is 0 on a GPU, and what programs reserve on a TPU.
    return DeviceMemory(
        megabytes("bytes_in_use"),
        megabytes("peak_bytes_in_use"),
        megabytes("pool_bytes"),
    )
