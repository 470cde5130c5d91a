"""Which device this is, and what it says of its memory."""

import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import psutil


class DeviceMemory(NamedTuple):
    """Megabytes (1e6 bytes) of the allocator; None where the backend is silent.

    in_use: held by arrays now; peak: the most since the process began, which can't be
    reset; reserved: what the allocator has taken from the device.
    """

    in_use: float | None
    peak: float | None
    reserved: float | None


class MemorySample(NamedTuple):
    """Memory at one moment; None where the backend is silent.

    device_in_use, device_reserved: as in DeviceMemory, megabytes; machine_percent: share of
    the whole machine's memory in use, by whatever process.
    """

    device_in_use: float | None
    device_reserved: float | None
    machine_percent: float


def sample_memory() -> MemorySample:
    """Read the memory in use at this moment, as the published study did between epochs.

    Returns:
        Megabytes (1e6 bytes) of the first device, and the machine's share.

    Example:
        >>> 0 < sample_memory().machine_percent <= 100
        True
    """
    held = device_memory()
    return MemorySample(held.in_use, held.reserved, psutil.virtual_memory().percent)


def maximum(samples: Sequence[MemorySample]) -> dict[str, float | None]:
    """Take the highest of each figure.

    Args:
        samples: at least one.

    Returns:
        The highest by the names of MemorySample; None where the backend is silent.

    Example:
        >>> maximum([MemorySample(1.0, None, 5.0), MemorySample(2.0, None, 4.0)])
        {'device_in_use': 2.0, 'device_reserved': None, 'machine_percent': 5.0}
    """

    def most(name: str) -> float | None:
        values = [getattr(one, name) for one in samples]
        return None if None in values else max(values)

    return {name: most(name) for name in MemorySample._fields}


def describe() -> dict[str, str | int]:
    """Name the device and the machine that measurements were made on.

    Returns:
        Platform, kind and number of devices, processor, cores, and memory in GB (1e9).

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
    """Read what the allocator of a device holds.

    `reserved` means something only with XLA_PYTHON_CLIENT_PREALLOCATE=false; otherwise
    it is the share of the device that JAX took at its start.

    Args:
        device: None for the first.

    Returns:
        Megabytes; on a CPU, which keeps no statistics, all None.

    Example:
        >>> device_memory().peak is None
        True
    """
    stats = (device or jax.local_devices()[0]).memory_stats() or {}

    def megabytes(*names: str) -> float | None:
        for name in names:
            if name in stats:
                return stats[name] / 1e6
        return None

    return DeviceMemory(
        megabytes("bytes_in_use"),
        megabytes("peak_bytes_in_use"),
        megabytes("pool_bytes", "bytes_reserved"),
    )
