"""kill -9 of `mlx-ft serve` and of its jobs at random moments: nothing is lost or left over.

python proofs/serve_kills.py [servers=20] [jobs=20] [seed=0]

A tiny model is trained once by an undisturbed server. Then the same job is asked for again and
again, while the server, or the job's own process, is killed at a random moment; a killed server is
started again on its folder. After each kill
    no process of it is there any more (the job's may save itself first),
    every job that was ever asked for is there, also for the same idempotency key,
    a job that ran is `interrupted`, and goes on with `resume`;
and when it has come to its end, adapter, optimizer and figures are those of the undisturbed one,
bit for bit, and the adapter answers.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlx_ft import runtime  # noqa: E402

runtime.prepare(threads=1)

from proofs.kills import MEASURED  # noqa: E402
from tests.serve.process import Process  # noqa: E402
from tests.serve.served import make_models, until  # noqa: E402

SAVING = 60.0  # seconds that a job has to save itself when its server is gone
LONGEST = 600.0  # seconds of a job on a busy machine
TEXTS = [f"### Instruction:\nsay {at % 5}\n\n### Response:\n{'abc' * (1 + at % 3)}"
         for at in range(24)]  # fmt: skip
JOB = {
    "model_name": "tiny",
    "train_texts": TEXTS,
    "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
    "training_config": {"batch_size": 2, "learning_rate": 1e-2, "max_steps": 60, "save_steps": 3,
                        "seed": 1, "validation_fraction": 0.1},
}  # fmt: skip
GOES_ON = "interrupted"


@dataclass
class Torture:
    """A server's folder, and the server that has it at the moment."""

    folder: Path
    model: str
    chance: random.Random
    server: Process = field(init=False)
    jobs: dict[str, str] = field(default_factory=dict)  # idempotency keys and ids
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A server on the folder."""
        self.server = Process(self.folder, self.model, "--no-tracking")
        self.http = self.server.http()

    def order(self) -> str:
        """Ask for the job once more; its id."""
        key = f"key-{len(self.jobs)}"
        self.jobs[key] = self._post(key)["job_id"]
        return self.jobs[key]

    def _post(self, key: str) -> Any:
        content = {**JOB, "output_dir": f"adapters/{key}"}
        return _fine(self.http.post("/api/training/start", json=content,
                                    headers={"Idempotency-Key": key}))  # fmt: skip

    def status(self, job: str) -> Any:
        """As /api/training/status tells it."""
        return _fine(self.http.get(f"/api/training/status/{job}"))

    def kill_server(self) -> None:
        """And see to it that nothing of it stays, and that another one knows all jobs."""
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        os.kill(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()
        _, alive = psutil.wait_procs(children, timeout=SAVING)
        self.wrong += [f"a process outlived its server: {one.cmdline()}" for one in alive]
        self.server.close()
        self.start()
        for key, job in self.jobs.items():
            if self._post(key)["job_id"] != job:
                self.wrong.append(f"another job for {key}")
        found = _fine(self.http.get("/api/training/jobs"))
        if found["total"] != len(self.jobs):
            self.wrong.append(f"{found['total']} jobs; expected {len(self.jobs)}")

    def kill_job(self) -> bool:
        """Whether there was a process to be killed."""
        children = psutil.Process(self.server.process.pid).children()
        for child in children:
            child.kill()
        return bool(children)

    def finish(self, job: str) -> None:
        """Let a job come to its end, resumed if need be."""
        until(lambda: self.status(job)["status"] not in ("queued", "running"), LONGEST)
        found = self.status(job)
        if found["status"] == GOES_ON:
            _fine(self.http.post(f"/api/training/resume/{job}"))
            self.finish(job)
        elif found["status"] != "completed":
            self.wrong.append(f"the job is {found['status']}: {found['error']}")

    def once(self, what: str, seconds: float, reference: dict[str, Any]) -> int:
        """One job with kills until it has ended, and what came of it; the number of kills."""
        job, kills = self.order(), 0
        while kills < 3:
            time.sleep(self.chance.uniform(0, 1.1 * seconds))
            ended = self.status(job)["status"] == "completed"
            if ended and kills:
                break
            if what == "server":
                self.kill_server()
                kills += 1
                expected = {"queued", "running", "interrupted", "completed"}
            elif self.kill_job():
                kills += 1
                expected = {"interrupted", "completed"}
                until(lambda: self.status(job)["status"] != "running", SAVING)
            else:
                break
            now = self.status(job)["status"]
            if now not in expected:
                self.wrong.append(f"after a kill of the {what} the job is {now}")
            if now == "completed":
                break
            if now == GOES_ON:
                _fine(self.http.post(f"/api/training/resume/{job}"))
        self.finish(job)
        self.wrong += [f"{job} ({kills} kills): {fault}" for fault in self.faults(job, reference)]
        return kills

    def faults(self, job: str, reference: dict[str, Any]) -> Iterator[str]:
        """What differs from the undisturbed job."""
        found = remains(self.folder / "home" / "jobs" / job / "run")
        yield from (f"{key} differs" for key in reference if found[key] != reference[key])
        name = self.status(job)["adapter_name"]
        kept = self.folder / "home" / "adapters" / name / "adapters.safetensors"
        if not kept.is_file() or kept.read_bytes() != reference["adapter"]:
            yield "another adapter in the store"
        asked = {"model": name, "prompt": "say 1", "max_tokens": 4, "temperature": 0}
        if self.http.post("/v1/completions", json=asked).status_code != 200:
            yield "its adapter does not answer"


def remains(run: Path) -> dict[str, Any]:
    """What must be equal, to the bit, in two runs."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": (run / "adapter" / "adapters.safetensors").read_bytes(),
        "last adapter": (last / "adapters.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "figures": [{key: value for key, value in row.items() if not key.startswith(MEASURED)}
                    for row in rows],
    }  # fmt: skip


def left_over(folder: Path) -> list[str]:
    """Processes that have to do with a folder, but for this one."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(words)[:200])
    return found


def _fine(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def main(servers: int = 20, jobs: int = 20, seed: int = 0) -> int:
    """0 when nothing was wrong."""
    started, chance = time.monotonic(), random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torture = Torture(folder, str(make_models(folder)["tiny"]), chance)
        try:
            job, began = torture.order(), time.monotonic()
            torture.finish(job)
            seconds = time.monotonic() - began
            reference = remains(folder / "home" / "jobs" / job / "run")
            print(f"undisturbed: {len(reference['figures'])} rows of figures, {seconds:.1f} s")
            for what, count in (("server", servers), ("job", jobs)):
                done = 0
                while done < count:
                    done += torture.once(what, seconds, reference)
                print(f"{what}: killed {done} times", flush=True)
        finally:
            torture.server.end()
            torture.server.close()
        wrong = torture.wrong + [f"left over: {one}" for one in left_over(folder)]
    for fault in wrong[:20]:
        print(f"    {fault}")
    print(f"{len(torture.jobs)} jobs, {len(wrong)} faults, seed {seed}, "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
