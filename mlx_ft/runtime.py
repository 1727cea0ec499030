"""Makes the process ready for MLX: the BLAS before `mlx.core` is imported, the device after.

On Linux MLX's CPU build comes with the reference BLAS, whose float32 products run tens of
times slower than the machine can. A library that exports `cblas_sgemm` globally before
`mlx.core` is loaded takes its place: the dynamic linker resolves MLX's symbol to the first one.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft.errors import ConfigError, MlxFtError

if TYPE_CHECKING:
    from mlx_ft.config.schema import MemoryProfileConfig

logger = logging.getLogger(__name__)

GIB = 1024**3

# scipy-openblas32 prefixes every symbol; what this defines gives MLX the names that it looks for.
SHIM = Path(__file__).with_name("native")
# What may trap keeps GCC from making vectors of loops with conditions.
FLAGS = ("-shared", "-fPIC", "-O3", "-fno-trapping-math")

SLOW = (
    "no fast BLAS found: float32 matrix products run tens of times slower than they could "
    "({reason}). Install a C compiler (`apt install gcc`) or `libopenblas0`, then start again."
)


@dataclass(frozen=True)
class Blas:
    """What multiplies matrices on the CPU. fast: worth training with."""

    name: str
    fast: bool


# Of glibc's <malloc.h>: memory that is freed stays with the process, up to 2 GiB, and large arrays
# come from there too, in MLX's own thread as well. The kernel gives each page of 4 KiB anew.
MALLOPT = {
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_MMAP_THRESHOLD": (-3, GIB),
    "M_ARENA_MAX": (-8, 1),
}

RANK = "MLX_RANK"  # set by mlx.launch, but not with MPI
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")

_prepared: Blas | None = None


def prepare(threads: int | None = None, cache_dir: Path | None = None) -> Blas:
    """Bring in a fast BLAS; call it before anything imports `mlx.core`. Idempotent.

    threads: CPU threads of matrix products; None leaves all cores. cache_dir: where the
    compiled shim is kept. Raises MlxFtError when `mlx.core` was imported too early on Linux.
    """
    global _prepared
    if _prepared is not None:
        return _prepared
    if sys.platform != "linux":
        _prepared = Blas("Accelerate", fast=True)
        return _prepared
    if "mlx.core" in sys.modules:
        raise MlxFtError(
            "mlx.core was imported before mlx_ft could bring in a fast BLAS; "
            "import mlx_ft and call mlx_ft.runtime.prepare() first"
        )
    _reuse_memory()
    if threads is not None:
        os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    _prepared = _load_blas(cache_dir or default_cache_dir())
    return _prepared


def _reuse_memory() -> None:
    """Let glibc's malloc keep what is freed; other libraries are left as they are."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for parameter, value in MALLOPT.values():
            mallopt(parameter, value)


def one_of_several() -> bool:
    """Whether `mlx.launch` has started this process as one of those that train together."""
    return RANK in os.environ or any(int(os.environ.get(size) or 1) > 1 for size in MPI_SIZES)


def scalar_exponentials() -> bool:
    """Whether the default device takes `exp` number by number, and sums and products do not.

    MLX's CPU build for Linux does; on a Mac it has Accelerate.
    """
    import mlx.core as mx

    return sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)


def default_cache_dir() -> Path:
    """Where converted models and compiled helpers go unless configured: `MLX_FT_CACHE`."""
    return Path(os.environ.get("MLX_FT_CACHE", "~/.cache/mlx-ft")).expanduser()


def default_output_dir() -> Path:
    """Where commands that take no configuration look for runs: `MLX_FT_OUTPUTS`."""
    return Path(os.environ.get("MLX_FT_OUTPUTS", "outputs")).expanduser()


def _load_blas(cache_dir: Path) -> Blas:
    reasons = []
    for load in (_load_packaged_blas, _load_system_blas):
        try:
            return Blas(load(cache_dir), fast=True)
        except (OSError, ImportError, subprocess.SubprocessError, shutil.Error) as error:
            reasons.append(str(error).strip().splitlines()[-1])
    logger.warning(SLOW.format(reason="; ".join(reasons)))
    return Blas("reference BLAS", fast=False)


def _load_packaged_blas(cache_dir: Path) -> str:
    """The PyPI package scipy-openblas32 through a forwarding shim, compiled once."""
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise ImportError("the package scipy-openblas32 is not installed")
    library_dir = Path(spec.origin).parent / "lib"
    version = metadata.version("scipy-openblas32")
    made_of = [*sources(), *FLAGS, str(library_dir), version, platform.machine()]
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    shim = cache_dir / "blas" / f"shim-{key}.so"
    if not shim.exists():
        shim = _compile_shim(library_dir, shim)
    ctypes.CDLL(str(shim), ctypes.RTLD_GLOBAL)
    if shim.parent != cache_dir / "blas":
        shim.unlink()  # loaded already; nobody else would find it
    return f"OpenBLAS (scipy-openblas32 {version})"


def sources() -> list[str]:
    """The texts that the shim is compiled from."""
    return [path.read_text("utf-8") for path in sorted(SHIM.glob("*.[ch]"))]


def _compile_shim(library_dir: Path, target: Path) -> Path:
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C compiler (cc, gcc or clang)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
    except OSError:  # no place to keep it: compiled anew by each process
        scratch = Path(tempfile.mkdtemp(prefix="mlx-ft-"))
        target = scratch.with_suffix(".so")
    try:
        built = scratch / "shim.so"
        link = [f"-L{library_dir}", "-lscipy_openblas", f"-Wl,-rpath,{library_dir}", "-lpthread"]
        files = map(str, sorted(SHIM.glob("*.c")))
        command = [compiler, *FLAGS, "-o", str(built), *files, *link]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise OSError(f"{compiler} has failed:\n{done.stderr or 'it does not say why'}")
        return built.replace(target)  # atomic: another process may do the same
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load_system_blas(_: Path) -> str:
    ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    return "OpenBLAS (system)"


def select_device(device: str = "auto") -> str:
    """Make `device` MLX's default one and return "metal", "cuda" or "cpu".

    device: "auto", "cpu" or "gpu". Raises ConfigError for a GPU that is not there.
    """
    import mlx.core as mx

    gpu = "metal" if mx.metal.is_available() else "cuda" if _cuda_available() else None
    if device == "gpu" and gpu is None:
        raise ConfigError(
            "device: found 'gpu', but MLX sees none on this machine. Use device=cpu or "
            "device=auto; for an NVIDIA card install the extra: pip install 'mlx-ft[cuda]'"
        )
    chosen = gpu if gpu and device != "cpu" else "cpu"
    mx.set_default_device(mx.Device(mx.cpu if chosen == "cpu" else mx.gpu))
    return chosen


def _cuda_available() -> bool:
    import mlx.core as mx

    cuda = getattr(mx, "cuda", None)
    return bool(cuda is not None and cuda.is_available())


def set_limits(profile: MemoryProfileConfig, device: str) -> None:
    """Apply the profile's memory limits; the wired limit exists on Metal only."""
    import mlx.core as mx

    if profile.cache_limit_gb is not None:
        mx.set_cache_limit(int(profile.cache_limit_gb * GIB))
    if profile.memory_limit_gb is not None:
        mx.set_memory_limit(int(profile.memory_limit_gb * GIB))
    if device == "metal":
        recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
        wanted = profile.wired_limit_gb
        limit = recommended if wanted is None else min(int(wanted * GIB), recommended)
        if limit:
            mx.set_wired_limit(limit)


def matmul_gflops(size: int = 1024, repeats: int = 5) -> float:
    """Best measured speed of a float32 (size, size) product on the default device."""
    import mlx.core as mx

    a = mx.random.uniform(shape=(size, size))
    b = mx.random.uniform(shape=(size, size))
    mx.eval(a, b, a @ b)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(a @ b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9
