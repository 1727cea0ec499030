"""The BLAS comes in before MLX, or the user hears why not. (Speed: benchmarks/blas.py.)"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import runtime
from mlx_ft.config.schema import MemoryProfileConfig
from mlx_ft.errors import ConfigError

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings a fast BLAS")

# The loader's answer where no system OpenBLAS is installed, on a machine that may have one.
NO_SYSTEM_BLAS = """
import ctypes
real = ctypes.CDLL
def without(name, *rest):
    if name == "libopenblas.so.0":
        raise OSError("libopenblas.so.0: cannot open shared object file")
    return real(name, *rest)
ctypes.CDLL = without
"""
PREPARE = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from mlx_ft import runtime
blas = runtime.prepare()
import mlx.core as mx
assert (mx.ones((2, 3)) @ mx.ones((3, 2))).tolist() == [[3, 3], [3, 3]]
print(blas.name, blas.fast, sep="|")
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def prepared(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings: Mapping[str, str] = {"MLX_FT_CACHE": str(folder), **environment}
    done = python(NO_SYSTEM_BLAS + PREPARE, **settings)
    assert done.returncode == 0, done.stderr
    return done


class DlInfo(ctypes.Structure):
    """dladdr's answer."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def library_of(symbol: str) -> str:
    """The file that the process resolves a global symbol to."""
    process, info = ctypes.CDLL(None), DlInfo()
    address = ctypes.cast(getattr(process, symbol), ctypes.c_void_p)
    assert process.dladdr(address, ctypes.byref(info))
    return os.fsdecode(info.file)


@linux
@pytest.mark.parametrize("symbol", ["cblas_sgemm", "cblas_dgemm"])
def test_products_resolve_to_openblas(symbol: str) -> None:
    assert runtime.prepare().fast
    library = library_of(symbol)
    maps = Path("/proc/self/maps").read_text()
    assert Path(library).name.startswith(("shim-", "mlx-ft-")) or "openblas" in library
    assert "openblas" in maps


def sgemm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b by whatever `cblas_sgemm` is in the process: row-major, nothing transposed."""
    (m, k), n = a.shape, b.shape[1]
    c = np.zeros((m, n), np.float32)
    function = ctypes.CDLL(None).cblas_sgemm
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, c)]
    order, plain = 101, 111
    function(
        order, plain, plain, m, n, k, one, pointers[0], k, pointers[1], n, zero, pointers[2], n
    )
    return c


@linux
def test_mlx_itself_multiplies_with_it() -> None:
    """The same bits; the reference BLAS, which adds up in the order of the rows, gives others."""
    random = np.random.RandomState(0)
    a, b = random.standard_normal((2, 64, 64)).astype(np.float32)
    found = np.array(mx.matmul(mx.array(a), mx.array(b), stream=mx.cpu))
    in_order = np.zeros((64, 64), np.float32)
    for i in range(64):
        in_order += a[:, i, None] * b[i]
    assert found.tobytes() == sgemm(a, b).tobytes()
    assert found.tobytes() != in_order.tobytes()


@linux
def test_mlx_imported_first_is_an_error_that_says_so() -> None:
    done = python(
        "import mlx.core\n"
        "from mlx_ft import errors, runtime\n"
        "try:\n    runtime.prepare()\n"
        "except errors.MlxFtError as error:\n    print(error)\n"
    )
    assert "mlx.core was imported before" in done.stdout, done.stderr
    assert "mlx_ft.runtime.prepare()" in done.stdout


@linux
def test_without_compiler_and_library_one_line_names_the_mend(tmp_path: Path) -> None:
    done = prepared(tmp_path / "cache", PATH=str(tmp_path))
    assert done.stdout == "reference BLAS|False\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING no fast BLAS found")
    assert "tens of times slower" in line
    assert "no C compiler (cc, gcc or clang); libopenblas.so.0: cannot open" in line
    assert "apt install gcc" in line
    assert "libopenblas0" in line


@linux
@pytest.mark.parametrize("compiler", [True, False])
def test_whether_products_lead_to_functions_in_c_is_found_out(
    compiler: bool, tmp_path: Path
) -> None:
    code = "from mlx_ft import runtime\nruntime.prepare()\n"
    code += "from mlx_ft import exponentials\nprint(exponentials.native())"
    path = {} if compiler else {"PATH": str(tmp_path)}
    done = python(NO_SYSTEM_BLAS + code, MLX_FT_CACHE=str(tmp_path / "cache"), **path)
    assert done.stdout == f"{compiler}\n", done.stderr


@linux
def test_compiles_once_and_keeps_it(tmp_path: Path) -> None:
    first = prepared(tmp_path)
    (shim,) = (tmp_path / "blas").iterdir()
    made = shim.stat().st_mtime_ns
    second = prepared(tmp_path, PATH="")  # no compiler is needed any more
    assert first.stdout == second.stdout
    assert first.stdout.endswith("|True\n")
    assert first.stdout.startswith("OpenBLAS (scipy-openblas32")
    assert first.stderr == second.stderr == ""
    assert [*(tmp_path / "blas").iterdir()] == [shim]
    assert shim.stat().st_mtime_ns == made


@linux
def test_a_cache_that_cannot_be_written_costs_a_compilation_only(tmp_path: Path) -> None:
    file, scratch = tmp_path / "file", tmp_path / "scratch"
    file.write_text("")
    scratch.mkdir()
    done = prepared(file / "cache", TMPDIR=str(scratch))
    assert done.stdout.endswith("|True\n")
    assert done.stderr == ""
    assert list(scratch.iterdir()) == []  # nothing piles up there, run after run


@linux
def test_threads(tmp_path: Path) -> None:
    code = (
        "from mlx_ft import runtime\n"
        "runtime.prepare(threads=1)\n"
        "import ctypes\n"
        "process = ctypes.CDLL(None)\n"
        "names = ('scipy_openblas_get_num_threads', 'openblas_get_num_threads')\n"
        "print(next(getattr(process, n)() for n in names if hasattr(process, n)))\n"
    )
    assert python(code).stdout == "1\n"


def test_preparing_again_changes_nothing() -> None:
    assert runtime.prepare() is runtime.prepare(threads=1)


def test_elsewhere_the_platform_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_prepared", None)
    monkeypatch.setattr("sys.platform", "darwin")
    assert runtime.prepare() == runtime.Blas("Accelerate", fast=True)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_FT_CACHE", "~/elsewhere")
    assert runtime.default_cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("MLX_FT_CACHE")
    assert runtime.default_cache_dir() == Path.home() / ".cache" / "mlx-ft"


@pytest.mark.parametrize(
    ("metal", "cuda", "wanted", "expected"),
    [
        (False, False, "auto", "cpu"),
        (False, False, "cpu", "cpu"),
        (True, False, "auto", "metal"),
        (False, True, "gpu", "cuda"),
        (True, False, "cpu", "cpu"),
    ],
)
def test_device(
    metal: bool, cuda: bool, wanted: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[mx.Device] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(runtime, "_cuda_available", lambda: cuda)
    monkeypatch.setattr(mx, "set_default_device", chosen.append)
    assert runtime.select_device(wanted) == expected
    assert chosen == [mx.Device(mx.cpu if expected == "cpu" else mx.gpu)]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "_cuda_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device: found 'gpu'.*device=cpu or device=auto"):
        runtime.select_device("gpu")


@pytest.mark.parametrize(
    ("device", "wired", "expected"),
    [("metal", None, 8), ("metal", 6.0, 6), ("metal", 99.0, 8), ("cpu", 6.0, None)],
)
def test_limits_are_given_to_mlx_in_bytes(
    device: str, wired: float | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, int] = {}
    for kind in ("cache", "memory", "wired"):
        setter = f"set_{kind}_limit"
        monkeypatch.setattr(mx, setter, lambda size, kind=kind: given.update({kind: size}))
    recommended = {"max_recommended_working_set_size": 8 * 2**30}
    monkeypatch.setattr(mx, "device_info", lambda: recommended)
    profile = MemoryProfileConfig(cache_limit_gb=0.5, memory_limit_gb=4, wired_limit_gb=wired)
    runtime.set_limits(profile, device)
    limits = {"cache": 2**29, "memory": 4 * 2**30}
    assert given == limits | ({} if expected is None else {"wired": expected * 2**30})
    given.clear()
    runtime.set_limits(MemoryProfileConfig(), "cpu")
    assert given == {}


def test_measures_products_in_gflops() -> None:
    assert runtime.matmul_gflops(size=64, repeats=1) > 0


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9])
def test_products_of_few_rows_are_those_of_numpy(
    rows: int, transposed: bool, flipped: bool
) -> None:
    """They take other ways through the shim; so do their transposes, sums and batches."""
    rng = np.random.default_rng(rows)
    for inputs, outputs in ((1, 1), (1, 7), (7, 1), (64, 3), (129, 257), (300, 2001), (1007, 65)):
        x = rng.standard_normal((inputs, rows) if flipped else (rows, inputs), dtype=np.float32)
        w = rng.standard_normal(
            (outputs, inputs) if transposed else (inputs, outputs), dtype=np.float32
        )
        c = rng.standard_normal((rows, outputs), dtype=np.float32)
        ours = [
            mx.array(x).T if flipped else mx.array(x),
            mx.array(w).T if transposed else mx.array(w),
        ]
        theirs = [x.T if flipped else x, w.T if transposed else w]
        product = theirs[0].astype(np.float64) @ theirs[1].astype(np.float64)
        near = {"rtol": 1e-5, "atol": 2e-6 * inputs}
        np.testing.assert_allclose(np.array(ours[0] @ ours[1]), product, **near)
        added = mx.addmm(mx.array(c), *ours, alpha=2.0, beta=-0.5)
        np.testing.assert_allclose(np.array(added), 2 * product - 0.5 * c, **near)
        many = mx.stack([ours[0], 3 * ours[0]]) @ mx.stack([ours[1], ours[1]])
        np.testing.assert_allclose(np.array(many), np.stack([product, 3 * product]), **near)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_few_rows_does_not_read_what_was_in_its_place(
    rows: int, transposed: bool
) -> None:
    """NaN times 0 is NaN: freed memory is taken again as it was left."""
    x = mx.ones((rows, 300))
    w = mx.ones((4099, 300)).T if transposed else mx.ones((300, 4099))
    for _ in range(20):
        mx.eval(mx.full((rows, 4099), float("nan")) + 1)
        assert mx.isfinite(x @ w).all().item()


@pytest.mark.parametrize("rows", [1, 2, 8, 20])
def test_what_counts_for_nothing_is_not_read(rows: int) -> None:
    nothing, w, c = mx.full((rows, 300), float("nan")), mx.ones((2000, 300)), mx.ones((rows, 2000))
    assert (mx.addmm(c, nothing, w.T, alpha=0.0) == 1).all().item()


@linux
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'unknown: vectors' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = prepared(tmp_path / "cache", PATH=str(tmp_path))
    assert done.stdout == "reference BLAS|False\n"
    assert "unknown: vectors" in done.stderr
    assert not [*(tmp_path / "cache" / "blas").iterdir()]


FEW = """
import sys
from mlx_ft import runtime
runtime.prepare({threads})
import mlx.core as mx
import numpy as np
rng = np.random.default_rng(0)
x, w = (mx.array(rng.standard_normal(s, dtype=np.float32)) for s in ((8, 1007), (1537, 1007)))
for rows in {rows}:
    sys.stdout.buffer.write(np.array(x[:rows] @ w.T)[:2].tobytes())
"""


@linux
def test_a_row_among_few_is_the_same_with_others_and_with_other_threads() -> None:
    """Of two to eight rows, or to four: those of answers that are given together."""
    more = [6, 7, 8] if " avx2 " in Path("/proc/cpuinfo").read_text() else []
    rows = [2, 3, 4, *more]
    code = [FEW.format(threads=count, rows=rows) for count in (1, 2, 3)]
    found = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, check=True).stdout
        for each in code
    ]
    size = 2 * 1537 * 4
    assert {each[at : at + size] for each in found for at in range(0, len(each), size)} == {
        found[0][:size]
    }
    assert len(found[0]) == len(rows) * size
