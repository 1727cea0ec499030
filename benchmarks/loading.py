"""How fast sharded safetensors are loaded, and what that makes of a model of 7 billion weights.

    python benchmarks/loading.py [--gigabytes 4] [--repeats 5] [--json FILE]

Writes random bfloat16 tensors in shards of 1 GB to a temporary folder (`--folder`: on which disk)
and loads them as a model folder is loaded: `mx.load` of every shard, then one evaluation of all
arrays. Each load is a process of its own; only the loading is timed. Warm: the shards are in the
page cache. Cold: they were taken out of it (posix_fadvise, Linux only); what then came from the
disk is what the kernel counted, and is less than all where a layer below caches, too. Medians. As
it is it needs 4 GB of disk and of memory; `--gigabytes 1` a quarter of that.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import measuring
import numpy as np
from measuring import median

GB = 10**9
WIDTH = 4096
WEIGHTS = 7.25e9  # Mistral 7B
SIZES = {"4 bits, groups of 64": 4.5 / 8, "16 bits": 2.0}  # bytes of a weight


def write(folder: Path, gigabytes: float) -> int:
    """Shards with tensors of 32 MB, by hand as NumPy has no bfloat16; their bytes."""
    random = np.random.default_rng(0)
    size = WIDTH * WIDTH * 2
    per_shard = GB // size
    count = max(1, round(gigabytes * GB / size))
    for shard, first in enumerate(range(0, count, per_shard)):
        names = range(first, min(count, first + per_shard))
        header = json.dumps({
            f"model.layers.{name}.weight": {
                "dtype": "BF16",
                "shape": [WIDTH, WIDTH],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i, name in enumerate(names)
        }).encode()  # fmt: skip
        header += b" " * (-len(header) % 8)
        with (folder / f"model-{shard:05}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in names:
                file.write(random.bytes(size))
            file.flush()
            os.fsync(file.fileno())
    return sum(path.stat().st_size for path in folder.iterdir())


def load(folder: Path) -> None:
    """What a child does: seconds, and bytes that came from a disk."""
    from mlx_ft import runtime

    runtime.prepare()
    import mlx.core as mx

    before = from_disk()
    started = time.perf_counter()
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights.update(mx.load(str(path)))  # type: ignore[arg-type]
    mx.eval(list(weights.values()))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "from_disk": from_disk() - before}))


def from_disk() -> int:
    """Bytes that this process has had fetched from storage; 0 where the kernel does not say."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])


def forget(folder: Path) -> None:
    """Take the shards out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, *, cold: bool) -> dict[str, float]:
    if cold:
        forget(folder)
    done = measuring.run([sys.executable, __file__, "--load", str(folder)])
    found: dict[str, float] = json.loads(done.output.splitlines()[-1])
    return found


def show(runs: dict[str, list[dict[str, float]]], size: int) -> None:
    lines = []
    for state, own in runs.items():
        speed = size / median(run["seconds"] for run in own) / GB
        disk = median(run["from_disk"] for run in own) / GB
        whole = [f"{WEIGHTS * width / GB / speed:.1f} s" for width in SIZES.values()]
        lines.append([state, f"{speed:.2f}", f"{disk:.2f}", *whole])
    print(f"{size / GB:.2f} GB")
    print(measuring.table(["page cache", "GB/s", "GB from disk", *(f"7B, {s}" for s in SIZES)],
                          lines))  # fmt: skip


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--load", type=Path, help="only load this folder and say how long it took")
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
        return
    about = measuring.machine()
    states = ["warm"] + (["cold"] if hasattr(os, "posix_fadvise") else [])
    runs: dict[str, list[dict[str, float]]] = {state: [] for state in states}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        size = write(folder, arguments.gigabytes)
        measure(folder, cold=False)
        for _ in range(arguments.repeats):
            for state in states:
                runs[state].append(measure(folder, cold=state == "cold"))
    show(runs, size)
    measuring.keep(arguments.json, {"bytes": size, "runs": runs}, about)


if __name__ == "__main__":
    main()
