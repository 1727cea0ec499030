"""`python train.py KEY=VALUE...` with the end of every step written down.

python benchmarks/speed/ours.py STEPS_FILE KEY=VALUE...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mlx_ft import runtime

runtime.prepare()
from mlx_ft.main import main  # noqa: E402
from mlx_ft.record import Record  # noqa: E402


def note_steps(path: Path) -> None:
    """From now on every recorded step leaves a line in `path`."""
    own = Record.step

    def step(self: Record, result: Any, *more: Any) -> None:
        own(self, result, *more)
        with path.open("a") as file:
            file.write(json.dumps({"tokens": result.tokens, "at": time.perf_counter()}) + "\n")

    setattr(Record, "step", step)  # noqa: B010


if __name__ == "__main__":
    note_steps(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
