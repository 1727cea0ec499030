"""What memory there is, and what of it this process uses: the machine, its container, MLX."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MACHINE = "this machine's memory"
UNLIMITED = 2**60  # cgroup v1 writes "no limit" as a number near 2^63


class Limit(NamedTuple):
    """A hard limit on memory. total, available: bytes; name: for messages."""

    total: int
    available: int
    name: str


@dataclass(frozen=True)
class Reading:
    """Bytes, at one moment. rss: of the process; mlx_*: MLX's own figures, the peak since it was
    reset; total, available: under the tightest of the host's limits, which `bound` names;
    device_total: of the accelerator, None on the CPU.
    """

    rss: int
    total: int
    available: int
    bound: str = MACHINE
    mlx_active: int = 0
    mlx_peak: int = 0
    mlx_cache: int = 0
    swap_used: int = 0
    swap_total: int = 0
    device_total: int | None = None


class Reader:
    """Gives the figures when called. device: "metal", "cuda" or "cpu".

    MLX's are those of the moment. The host's cost a millisecond, which a tiny step would feel:
    they are at most `every` seconds old.
    """

    def __init__(self, device: str, every: float = 0.5) -> None:
        self._device_total = _device_total(device)
        self._every = every
        self._host: Reading | None = None
        self._since = 0.0

    def __call__(self) -> Reading:
        """Bytes."""
        if self._host is None or time.monotonic() - self._since > self._every:
            self._host, self._since = self._read_host(), time.monotonic()
        return replace(
            self._host,
            mlx_active=mx.get_active_memory(),
            mlx_peak=mx.get_peak_memory(),
            mlx_cache=mx.get_cache_memory(),
        )

    def _read_host(self) -> Reading:
        used = psutil.Process().memory_info()
        swap = psutil.swap_memory()
        bounds = limits(used.rss, used.vms)
        tightest = min(bounds)
        return Reading(
            rss=used.rss,
            total=tightest.total,
            available=max(0, min(bound.available for bound in bounds)),
            bound=tightest.name,
            swap_used=swap.used,
            swap_total=swap.total,
            device_total=self._device_total,
        )


def limits(rss: int, virtual: int) -> list[Limit]:
    """Every hard limit on the host's memory for this process.

    rss, virtual: its resident and virtual size. `ulimit -v` counts the virtual one.
    """
    machine = psutil.virtual_memory()
    found = [Limit(machine.total, machine.available, MACHINE)]
    found += cgroup_limits(CGROUPS, MEMBERSHIP)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(Limit(soft - virtual + rss, soft - virtual, "the limit of `ulimit -v`"))
    return found


def cgroup_limits(mount: Path, membership: Path) -> list[Limit]:
    """Limits of the control groups (v1 or v2) that this process is in, parents included.

    mount: where the groups are, usually /sys/fs/cgroup. membership: /proc/self/cgroup. Within a
    container its paths may be the host's; the mount is then the container's own group.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found: list[Limit] = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            found += _group_limits(mount, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            found += _group_limits(mount / "memory", path, *names)
    return found


def _group_limits(mount: Path, path: str, limit_name: str, usage_name: str) -> Iterable[Limit]:
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None and limit < UNLIMITED:
            free = limit - usage + _reclaimable(folder / "memory.stat")
            yield Limit(limit, free, f"the container's memory limit ({limit_name})")
        if folder == mount:
            return


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such controller here; "max"
        return None


def _reclaimable(path: Path) -> int:
    """File cache that the kernel drops before it kills anybody; it counts as used."""
    try:
        figures = dict(line.split() for line in path.read_text().splitlines())
        prefix = "total_" if "total_active_file" in figures else ""  # v1: children included
        return sum(int(figures[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    except (OSError, ValueError, KeyError):
        return 0


def _device_total(device: str) -> int | None:
    if device == "cpu":
        return None
    figures = mx.device_info()
    key = "max_recommended_working_set_size" if device == "metal" else "total_memory"
    return int(figures[key]) if key in figures else None
