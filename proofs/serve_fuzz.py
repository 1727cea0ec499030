"""Requests that nobody would send to `mlx-ft serve`: no server error, nothing beside its store.

python proofs/serve_fuzz.py [cases=10000] [names=300] [seed=0]

cases   schemathesis makes them of the OpenAPI document, with all of its phases and checks, for a
        server of tiny models whose jobs are stand-ins and whose downloads fail. What a schema
        cannot say is refused with 400 or 422, and models that are away with 503, which the check
        of accepted data is told.
names   hostile ones, in every path and field that takes a name: each is refused. Files beside
        the store are compared before and after, and while it runs no file is opened, listed,
        made or removed there, nor anywhere else but in the store, the model and Python's own places
        (an audit hook of the process).

0 leaves a part out. Ends with 1 when anything was wrong.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.serving import keep  # noqa: E402
from tests.serve.hostile import attack, names  # noqa: E402
from tests.serve.served import Served, make_models, tree  # noqa: E402
from tests.serve.test_training import FAKE  # noqa: E402

CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 413, 422, 429, 503]
"""
EVENTS = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir",
          "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")  # fmt: skip
SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc/localtime", "/etc/mime.types")


@contextmanager
def fuzzed(folder: Path) -> Iterator[Served]:
    """A server with a few adapters in its store, in this process; it trains and fetches nothing."""
    from mlx_ft.models import catalog
    from mlx_ft.serve import around, jobs
    from mlx_ft.serve.plan import Plan

    models = make_models(folder)
    keep(folder / "home", models, 4)
    fake = folder / "fake.py"
    quick = FAKE.replace("rows = run", "steps = min(steps, 20)\nrows = run")
    fake.write_text(quick.replace("ADAPTER", repr(str(models["small"]))))
    jobs.LONGEST_QUEUE = 5  # so that the events of a job do not have to be waited for
    jobs.COMMAND = (sys.executable, str(fake))  # type: ignore[assignment]
    around.plan = lambda *_: Plan(0, 1)
    catalog.download = _no_download
    served = Served(folder, models, lora_routes=True)
    try:
        served.chat("tiny")
        yield served
    finally:
        served.close()


def _no_download(*_: Any, **__: Any) -> NoReturn:
    from mlx_ft.errors import ModelError

    raise ModelError("nothing is downloaded here")


def cases(folder: Path, served: Served, count: int, seed: int) -> list[str]:
    """What schemathesis finds in about so many cases."""
    operations = sum(len(found) for found in served.get("/openapi.json")["paths"].values())
    (folder / "schemathesis.toml").write_text(CONFIG)
    each = max(1, -(-count // operations))
    command = [
        str(Path(sysconfig.get_path("scripts")) / "schemathesis"), "--config-file",
        str(folder / "schemathesis.toml"), "--no-color", "run", f"{served.url}/openapi.json",
        "--checks", "all", "--max-examples", str(each), "--seed", str(seed), "--no-shrink",
        "--continue-on-failure", "--generation-database", "none", "--request-timeout", "60",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (folder / "schemathesis.txt").write_text(done.stdout + done.stderr)
    summary = done.stdout[done.stdout.rfind("== SUMMARY ==") :]
    print(f"cases: {operations} operations, up to {each} made for each, and those of other phases")
    print("  " + "\n  ".join(line for line in summary.splitlines()[1:] if line.strip()))
    found = re.search(r"([\d,]+) generated", summary)
    if found is None or int(found[1].replace(",", "")) < count:
        return [f"fewer cases than {count:,}, or none: {(done.stdout + done.stderr)[-2000:]}"]
    return [] if done.returncode == 0 else [f"schemathesis says: {done.stdout[-6000:]}"]


class Watched:
    """The files that this process uses while it is told to look."""

    def __init__(self, allowed: Iterable[Path | str]) -> None:
        """Allowed: files and folders that are not told of."""
        self._allowed = [os.path.realpath(place) + os.sep for place in allowed]
        self.looking = False
        self.found: set[str] = set()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.looking or event not in EVENTS:
            return
        for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if isinstance(path, str | bytes | os.PathLike):
                place = os.path.realpath(os.fsdecode(path))
                if not any(f"{place}{os.sep}".startswith(own) for own in self._allowed):
                    self.found.add(f"{event} {place}")


def hostile(folder: Path, served: Served, count: int, seed: int) -> list[str]:
    """What is wrong after so many names were put everywhere."""
    outside = folder / "outside"
    (outside / "adapters").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (folder / "home-2").mkdir()
    (folder / "home-2" / "secret").write_text("secret")
    own = ("home", "cache", "tiny", "second", "small", "fake.py")
    python = (sys.prefix, sys.base_prefix, ROOT / "mlx_ft", ROOT / "conf", sys.pycache_prefix or "")
    watched = Watched([*(folder / name for name in own), *filter(None, python), *SYSTEM])
    before = beside(folder)
    kept = tree(served.home)
    given = names(count, random.Random(seed))  # noqa: S311
    wrong = []
    watched.looking = True
    for name in given:
        wrong += attack(served.client, name, folder / "small")
    watched.looking = False
    wrong += [f"outside of the store: {one}" for one in sorted(watched.found)]
    if beside(folder) != before:
        wrong.append("files beside the store have changed")
    if tree(served.home) != kept:
        wrong.append("the store has changed")
    print(f"names: {len(given)} in every path and field; {len(watched.found)} files used elsewhere")
    return wrong


def beside(folder: Path) -> dict[str, str]:
    """A digest of each folder that is not the store."""
    return {path.name: tree(path) if path.is_dir() else path.read_text()
            for path in folder.iterdir() if path.name not in ("home", "cache")}  # fmt: skip


def main(count: int = 10_000, hostile_names: int = 300, seed: int = 0) -> int:
    """0 when nothing was wrong."""
    started, wrong = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["HF_HUB_OFFLINE"] = "1"
        with fuzzed(folder) as served:
            if hostile_names:
                wrong += hostile(folder, served, hostile_names, seed)
            if count:
                wrong += cases(folder, served, count, seed)
            served.get("/health")
    for fault in wrong[:20]:
        print(f"    {fault}")
    print(f"{len(wrong)} faults, seed {seed}, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
