"""float32 products of MLX in a process of ours, of NumPy, and of MLX as installed (Linux CPU).

    python benchmarks/blas.py [--size 2048] [--require SHARE]

After the square ones, the products of decoding: 1, 2, 4, 8 and 9 rows by the transposed head of the
embedded model, 49,152 x 576. With --require, exits 1 when the square ones of ours reach less than
that share of NumPy's GFLOP/s.
"""

import argparse
import subprocess
import sys

MLX = "from mlx_ft import runtime; {prepare}; print(runtime.matmul_gflops({size}, {repeats}))"
NUMPY = """
import time
import numpy as np
a, b = np.random.default_rng(0).random((2, {size}, {size}), dtype=np.float32)
best = float("inf")
for _ in range({repeats} + 1):
    start = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - start)
print(2 * {size}**3 / best / 1e9)
"""


ROWS = """
import time
from mlx_ft import runtime
runtime.prepare()
import mlx.core as mx
x, head = mx.random.uniform(shape=({rows}, 576)), mx.random.uniform(shape=(49152, 576))
mx.eval(x, head, x @ head.T)
best = float("inf")
for _ in range(20):
    start = time.perf_counter()
    mx.eval(x @ head.T)
    best = min(best, time.perf_counter() - start)
print(1000 * best)
"""


def milliseconds(rows: int) -> float:
    """Of so many rows by the head, in a process of its own."""
    command = [sys.executable, "-c", ROWS.format(rows=rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(code: str, size: int, repeats: int = 5) -> float:
    """GFLOP/s, in a process of its own."""
    command = [sys.executable, "-c", code.format(size=size, repeats=repeats)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--require", type=float, default=0.0)
    arguments = parser.parse_args()
    size = arguments.size
    ours = measure(MLX.replace("{prepare}", "runtime.prepare()"), size)
    numpy = measure(NUMPY, size)
    installed = measure(MLX.replace("{prepare}", "pass"), min(size, 1024), repeats=1)
    print(f"MLX in a process of mlx-ft  {ours:7.1f} GFLOP/s")
    print(f"NumPy                       {numpy:7.1f} GFLOP/s")
    print(f"MLX as installed            {installed:7.1f} GFLOP/s")
    print(f"ours / NumPy                {ours / numpy:7.2f}")
    for rows in (1, 2, 4, 8, 9):
        print(f"{rows:2} rows by a head          {milliseconds(rows):7.1f} ms")
    if ours < arguments.require * numpy:
        sys.exit(f"less than {arguments.require:.0%} of NumPy's speed")


if __name__ == "__main__":
    main()
