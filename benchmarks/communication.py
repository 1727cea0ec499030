"""What it costs that machines wait for one another: a calculation, not a measurement.

    python benchmarks/communication.py [EXPERIMENT] [--plot FILE] [--json FILE]

For a recipe (`mistral_7b_m4` unless named) the seconds of an optimizer step on one machine and the
bytes of its adapter, both as `mlx-ft estimate` has them. On n machines the rows of a step are
divided, and twice a step as many bytes as the adapter has go around the ring: the adapter out, the
gradients in. An all-reduce of B bytes over links of w bytes/s and l seconds takes
2 (n - 1) / n B / w + 2 (n - 1) l (Patarasuk and Yuan 2009). The speed-up is the seconds on one
machine by those on n; beyond the rows of a step there is nothing left to divide.
"""

from __future__ import annotations

import json
import sys

import measuring
from measuring import COLOURS, MARKERS

MACHINES = (1, 2, 4, 8, 16, 32, 64)
# bytes/s that a socket sees, about 80% of the link, and seconds of latency.
NETWORKS = {
    "Wi-Fi, 300 Mbit/s": (30e6, 3e-3),
    "Ethernet, 1 Gbit/s": (100e6, 200e-6),
    "Ethernet, 10 Gbit/s": (1e9, 50e-6),
    "Thunderbolt 5, 80 Gbit/s": (6e9, 20e-6),
}


def seconds(
    alone: float, size: float, rows: int, machines: int, link: tuple[float, float]
) -> float:
    """Of an optimizer step. alone: on one machine; size: bytes of the adapter."""
    width, latency = link
    share = -(-rows // machines) / rows  # of the machine with the most rows
    around = 2 * (machines - 1) / machines * size / width + 2 * (machines - 1) * latency
    return alone * share + 2 * around * (machines > 1)


def main() -> None:
    """Print the table."""
    parser = measuring.parser(__doc__)
    parser.add_argument("experiment", nargs="?", default="mistral_7b_m4")
    args = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "mlx_ft",
        "estimate",
        f"experiment={args.experiment}",
        "--json",
    ]
    found = json.loads(measuring.run(command).output)
    profile, size = found["profile"], found["disk"]["adapter"]
    rows = profile["micro_batch_size"] * profile["grad_accumulation_steps"]
    alone = found["time"]["seconds"] / found["work"]["steps"]
    print(f"{found['model']}: a step of {rows} rows takes {alone:.0f} s on one machine "
          f"({found['time']['about']}), its adapter {size / 1e6:.0f} MB\n")  # fmt: skip
    speedups = {
        name: [alone / seconds(alone, size, rows, n, link) for n in MACHINES]
        for name, link in NETWORKS.items()
    }
    lines = [[name, *(f"{x:.2f}x" for x in found)] for name, found in speedups.items()]
    print(measuring.table(["machines", *map(str, MACHINES)], lines))
    measuring.keep(args.json, {"speedups": speedups}, measuring.machine())

    def draw(axes: object) -> None:
        for (name, ups), colour, marker in zip(speedups.items(), COLOURS, MARKERS, strict=False):
            axes.plot(MACHINES, ups, color=colour, marker=marker, label=name)  # type: ignore[attr-defined]
        axes.set(xscale="log", yscale="log", xlabel="machines", ylabel="speed-up")  # type: ignore[attr-defined]
        axes.legend()  # type: ignore[attr-defined]

    measuring.plot(args.plot, draw)


if __name__ == "__main__":
    main()
