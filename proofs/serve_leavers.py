"""Clients that leave in mid-stream: how many tokens are computed until their place is free.

Used by `python proofs/serve_load.py`. The server is in this process, so that its steps can be
counted; a step takes 20 ms, as with a model of some size: in less, several pass until the
connection's end has arrived.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mlx_ft.serve.security import Rules
from proofs.serving import MODELS, asked
from tests.serve.served import Served, make_models, until

STEP = 0.02  # seconds
LONG = 120  # tokens of an answer, if nobody left
MOST = 2  # tokens until the place is free
PATH = "/v1/completions"


def leavers(folder: Path, count: int, chance: random.Random) -> list[str]:
    """What is wrong when so many leave, each after some tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    models = make_models(folder)
    served = Served(folder, models, Rules("127.0.0.1"))
    try:
        return _leave(served, models, count, chance)
    finally:
        served.close()


def _leave(served: Served, models: dict[str, Path], count: int, chance: random.Random) -> list[str]:
    for name in MODELS[1:]:
        served.server.shelf.put(name, models[name], {"base": "tiny", "digest": None})
        served.chat(name)
    engine = served.server.state.current.engine
    _slow_down(engine)
    more, wrong, longest = Counter[int](), [], 0.0
    for number in range(count):
        after = chance.randint(1, 12)
        content = asked(chance.choice(MODELS), f"abc{number}", LONG, stream=True)
        with served.client.stream("POST", PATH, json=content) as response:
            lines = response.iter_lines()
            for _ in range(2 * after):  # an event is a line and an empty one
                next(lines, None)
        left, steps = time.monotonic(), engine.steps
        until(lambda: engine.load_now == (0, 0), 10)
        longest = max(longest, time.monotonic() - left)
        more[engine.steps - steps] += 1
        if engine.steps - steps > MOST:
            wrong.append(f"client {number}: {engine.steps - steps} tokens more after it had left")
    told = ", ".join(f"{tokens} ({times} times)" for tokens, times in sorted(more.items()))
    print(f"leavers: {count} left in mid-stream; tokens until the place was free: {told}; "
          f"{1000 * longest:.0f} ms at most")  # fmt: skip
    return wrong


def _slow_down(engine: Any) -> None:
    """No answer ends by itself, and a step takes its time."""
    genuine = engine._step

    def step() -> None:
        genuine()
        if engine._batch.rows:
            time.sleep(STEP)

    engine._step, engine._ends = step, ()
