"""kill -9 at random moments, resumed until done: bitwise the run that was never stopped.

python proofs/kills.py [kills=200] [seed=0]

Every scenario trains a tiny model once without a stop. Then the same job is killed again and
again, at a random time or at a random change of the file system (in the middle of saves, too), and
resumed with `train.resume=auto`, until it ends. Adapter, best adapter, optimizer state and metrics
must then be equal, bit for bit; MLflow must have one finished run with every point of every step
once.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COMMON = (
    "model.path=./model", "data=custom", "data.path=rows.jsonl", "data.metric=exact_match",
    "lora.rank=4", "eval.max_tokens=2", "eval.task_rows=2", "memory_profile=cpu",
    "memory_profile.micro_batch_size=4", "device=cpu", "train.resume=auto", "threads=1",
    "train.max_steps=24", "checkpoint.every=3", "eval.every=6", "train.log_every=2",
)  # fmt: skip
SCENARIOS: dict[str, tuple[str, ...]] = {
    "adamw, cosine": (),
    "accumulation and dropout": ("memory_profile.grad_accumulation_steps=3", "lora.dropout=0.2"),
    "epochs with a partial last window": (
        "train.max_steps=null", "train.epochs=3.5", "memory_profile.grad_accumulation_steps=4",
        "optimizer=adam", "optimizer.schedule=linear",
    ),
    "adafactor, constant": ("optimizer=adafactor", "optimizer.schedule=constant"),
    "lion, wsd": ("optimizer=lion", "optimizer.schedule=wsd"),
    "muon": ("optimizer=muon", "optimizer.learning_rate=1e-3"),
    "sgd, dropout, last adapter": ("optimizer=sgd", "lora.dropout=0.1", "checkpoint.best=false"),
    "compiled steps": ("train.compile=true", "data.packing=none", "train.max_steps=12"),
    "rows apart, logits everywhere": ("data.share_prefixes=false", "train.targets_only=false"),
    "frozen layers remembered": ("lora.num_layers=1", "train.frozen_cache=true"),
    "a base kept in 4 bits": (
        "model.quantize={bits: 4, group_size: 32}", "model.dequantize=false", "train.max_steps=9",
    ),
    "early stopping": (
        "eval.every=2", "train.early_stopping_patience=2", "optimizer.learning_rate=0.05",
    ),
    "gradient checkpointing, rsLoRA": ("memory_profile.grad_checkpoint=true", "lora=rslora"),
    "spikes rewound": (
        "train.spike_factor=1.02", "train.on_spike=rewind", "train.skip_patience=50",
    ),
}  # fmt: skip
MEASURED = ("memory/", "train/tokens_per_second")  # of a process, not of the run


@dataclass
class Place:
    """A folder with a model, rows and a zygote that starts trainings there."""

    folder: Path
    zygote: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        from tests.jobs import write_rows
        from tests.models import tiny

        tiny.save(self.folder / "model")
        write_rows(self.folder / "rows.jsonl")
        self.zygote = subprocess.Popen(
            [sys.executable, str(ROOT / "proofs" / "zygote.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.zygote.stdout is not None
        return self.zygote.stdout.readline().strip()

    def start(self, arguments: list[str], **order: Any) -> dict[str, Any]:
        """Run one training to its end, or to the kill that `order` asks for."""
        assert self.zygote.stdin is not None
        env = {"MLX_FT_CACHE": str(self.folder / "cache")}
        order = {"arguments": arguments, "folder": str(self.folder), "env": env, **order}
        self.zygote.stdin.write(json.dumps(order) + "\n")
        self.zygote.stdin.flush()
        return dict(json.loads(self._line()))

    def output(self) -> str:
        """What the trainings printed, and forget it."""
        path = self.folder / "output.txt"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text

    def close(self) -> None:
        """End the zygote."""
        assert self.zygote.stdin is not None
        self.zygote.stdin.close()
        self.zygote.wait(30)
        assert self.zygote.stdout is not None
        self.zygote.stdout.close()


def arguments(name: str, run: str, *more: str) -> list[str]:
    """The command line of a scenario in the run folder `run`."""
    chosen = SCENARIOS[name] + more
    given = {text.partition("=")[0] for text in chosen}
    common = [text for text in COMMON if text.partition("=")[0] not in given]
    return [*common, *chosen, f"hydra.run.dir={run}"]


def remains(folder: Path) -> dict[str, Any]:
    """What must be equal, to the bit, in two runs."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((last / "state.json").read_text())["progress"]
    own = ("train_seconds", "wall_seconds", "peak_memory_gb", "resumes")
    best = last / "best.safetensors"
    return {
        "adapter": (folder / "adapter" / "adapters.safetensors").read_bytes(),
        "last adapter": (last / "adapters.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "best": best.read_bytes() if best.exists() else None,
        "metrics": [_told(row) for row in rows],
        "progress": {key: value for key, value in state.items() if key not in own},
        "samples": (folder / "samples.jsonl").read_text(),
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(MEASURED)}


def tracked(folder: Path, run: str) -> tuple[list[str], Counter[tuple[Any, ...]]]:
    """Statuses of a run folder's MLflow runs, and how often each point is there.

    A point is (metric, step, value), without the value where it is of the process.
    """
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        ids = database.execute(
            "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'mlx_ft.run_dir' and t.value = ?", (str((folder / run).resolve()),),
        ).fetchall()  # fmt: skip
        points: Counter[tuple[Any, ...]] = Counter()
        for run_id, _ in ids:
            found = database.execute(
                "select key, step, value from metrics where run_uuid = ?", (run_id,)
            )
            points.update(
                (key, step, None if key.startswith(MEASURED) else value)
                for key, step, value in found
            )
    return [status for _, status in ids], points


def faults(place: Place, reference: str, run: str) -> list[str]:
    """What differs between the killed run and the one that was never stopped."""
    folder = place.folder
    expected, found = remains(folder / reference), remains(folder / run)
    wrong = [f"{key} differs" for key in expected if expected[key] != found[key]]
    statuses, points = tracked(folder, run)
    _, wanted = tracked(folder, reference)
    if statuses != ["FINISHED"]:
        wrong.append(f"MLflow has the runs {statuses}")
    if points != wanted:
        wrong.append(f"MLflow lacks {wanted - points} and has too many of {points - wanted}")
    left = [p.name for p in (folder / run).rglob("*") if p.name.startswith(".tmp-")]
    left += [p.name for p in (folder / run).rglob("*.partial")]
    if left:
        wrong.append(f"left behind: {left}")
    return wrong


def torture(place: Place, name: str, kills: int, chance: random.Random) -> tuple[int, list[str]]:
    """Kill the scenario's job until it has had `kills` kills, and compare; (kills, what is wrong).

    Several runs, if one ends before.
    """
    reference = re.sub(r"\W+", "-", name)
    plain = place.start(arguments(name, reference))
    if plain["code"] != 0:
        return 0, [f"the reference ended with {plain}: {place.output()[-2000:]}"]
    done, turn, wrong = 0, 0, []
    while done < kills:
        turn += 1
        shutil.rmtree(place.folder / "cache" / "activations", ignore_errors=True)
        run = f"{reference}-{turn}"
        for _ in range(200):
            order: dict[str, Any] = {}
            if done < kills and chance.random() < 0.5:
                order = {"after": chance.uniform(0.2, 1.0) * plain["seconds"]}
            elif done < kills:
                order = {"event": chance.randint(1, plain["events"])}
            ended = place.start(arguments(name, run), **order)
            if ended["code"] == 0:
                break
            if ended["signal"] != signal.SIGKILL:
                return done, [f"ended with {ended}: {place.output()[-2000:]}"]
            done += 1
        wrong += [f"run {turn}: {fault}" for fault in faults(place, reference, run)]
    return done, wrong


def main(kills: int = 200, seed: int = 0) -> int:
    """Share the kills out over the scenarios; 0 when every run came out equal."""
    started, total, bad = time.monotonic(), 0, 0
    chance = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        each = -(-kills // len(SCENARIOS))
        for name in SCENARIOS:
            done, wrong = torture(place, name, each, chance)
            total, bad = total + done, bad + len(wrong)
            print(f"{name:<36} {done:3} kills  {'equal' if not wrong else 'DIFFERENT'}", flush=True)
            for fault in wrong:
                print(f"    {fault}")
        place.close()
    print(f"{total} kills, {bad} differences, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
