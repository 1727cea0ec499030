"""Fuzzed command lines: a run or a one-screen error, nothing else written, no value executed.

python proofs/fuzz_overrides.py [count=2000] [seed=0] [first=0]

Every case runs `mlx_ft.main.main` in a forked process, in a scratch folder with a tiny model. What
it may not do is recorded by an audit hook and by a module `canary` that leaves a mark, and seen
in the files afterwards. The exit code is 1 when a case broke a rule.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proofs.override_cases import Case, cases
from proofs.override_process import Outcome, Scratch, make_database, prepare_process, run, warm

SCREEN = (40, 100)  # lines, columns
# What a case only reads; what a run may start: libraries, uname, git, the judge of programs.
INPUTS = ("model", "rows.jsonl", "valid.jsonl", "readable.yaml", "loop", "site", "cwd/mine/")
HARMLESS = re.compile(r"ctypes\.dlopen|uname|code_tests|'git', '-C', .*'rev-parse'")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def faults(case: Case, outcome: Outcome, scratch: Scratch) -> Iterator[str]:
    """The rules that a case broke."""
    code, screen = outcome.code, outcome.out + outcome.err
    if code not in (0, 1, 2):
        yield "hangs" if code is None else f"ends with {code}"
    if "Traceback (most recent call last)" in screen:
        yield "shows a traceback"
    if code != 0:
        yield from _screen_faults(screen)
    if code == 2:
        if not outcome.err.endswith("Nothing was written.\n"):
            yield "does not say that nothing was written"
        kept = ("home", "tmp/", *_cache_places(case))
        if left := [name for name in outcome.changed if not name.startswith(kept)]:
            yield f"left {left[:5]}"
    if code == 0 and not case.prints and "-m" not in case.args:
        yield from _run_faults(scratch)
    if code == 1 and re.search(r"The run failed\. \w+: ", outcome.err):
        yield "fails by surprise"
    yield from _outside(case, outcome, scratch)
    if touched := [name for name in outcome.changed if name.startswith(INPUTS)]:
        yield f"changes {touched}"
    if marks := sorted(path.name for path in (scratch.root / "marks").iterdir()):
        yield f"canary {', '.join(marks)}"
    for kind, *what in outcome.events:
        if kind == "runs" and not HARMLESS.search(" ".join(what)):
            yield f"runs {what}"
        if kind == "network" and "127.0.0.1" not in what[0] and "localhost" not in what[0]:
            yield f"asks the network for {what[0]}"


def _cache_places(case: Case) -> list[str]:
    """What was encoded of good files stays in the cache that the case named."""
    named = any(word.startswith("paths.cache_dir=") for word in case.args)
    return [os.path.normpath(f"cwd/{place}") for place in case.places] if named else []


def _screen_faults(screen: str) -> Iterator[str]:
    lines, columns = SCREEN
    height = sum(max(1, -(-len(line) // columns)) for line in screen.splitlines())
    if height > lines:
        yield f"fills {height} lines"
    if CONTROL.search(screen):
        yield "shows control characters"
    if not screen.strip():
        yield "says nothing"


def _run_faults(scratch: Scratch) -> Iterator[str]:
    """A run that ended well is complete."""
    found = [*scratch.root.rglob("summary.json")]
    found = [path for path in found if "artifacts" not in path.parts]
    if len(found) != 1:
        yield f"{len(found)} run folders"
        return
    if json.loads(found[0].read_text())["status"] != "FINISHED":
        yield "ends with 0 and another status than FINISHED"
    for name in ("config.yaml", "metrics.jsonl", "train.log", "adapter/adapters.safetensors"):
        if not (found[0].parent / name).is_file():
            yield f"a run without {name}"


def _outside(case: Case, outcome: Outcome, scratch: Scratch) -> Iterator[str]:
    """What was written elsewhere than in the run folder, mlruns, the cache and what it named."""
    own = ("outputs", "mlruns", *case.places)
    allowed = [os.path.realpath(scratch.cwd / name) for name in own]
    allowed += [str(scratch.root / name) for name in ("home/.cache", "tmp", "logs", "marks")]
    paths = [path for kind, *found in outcome.events if kind == "write" for path in found]
    paths += [found[0].removeprefix("file:") for kind, *found in outcome.events if kind == "sqlite"]
    paths += [str(scratch.root / name) for name in outcome.changed if name != "cwd"]
    named = [scratch.cwd / path for path in paths if path != ":memory:"]
    links = [str(Path(os.path.realpath(path.parent)) / path.name) for path in named]
    for path in sorted({*map(os.path.realpath, named), *links}):  # a link, and where it leads
        inside = any(path == place or path.startswith(place + "/") for place in allowed)
        if not inside and path not in ("/dev/null", str(scratch.cwd), str(scratch.root)):
            yield f"writes to {path}"


def main(count: int = 2000, seed: int = 0, first: int = 0) -> int:
    """Run the cases `first` to `count`; print what became of them and each broken rule."""
    import mlx_ft.main

    root = Path(tempfile.mkdtemp(prefix="mlx-ft-fuzz-")).resolve()  # no atexit: cases are forked
    counts, broken, started = Counter[tuple[str, str]](), 0, time.monotonic()
    try:
        scratch = prepare_process(root)
        warm(scratch)
        for number, case in enumerate(cases(count, seed, root)):
            if number < first:
                continue
            if case.kind == "tracked" and scratch.template is None:
                make_database(scratch)
            outcome = run(case, scratch, mlx_ft.main.main)
            counts[case.kind, str(outcome.code)] += 1
            found = [*faults(case, outcome, scratch)]
            broken += bool(found)
            if found or outcome.code == 1:  # a failure while running is rare: look at it
                said = "; ".join(found) or "fails"
                print(f"\ncase {number} of seed {seed} ({case.kind}): {said}"[:1500])
                print(f"  {[arg[:200] for arg in case.args]!r} {str(case.files)[:900]!r}")
                print(f"  {outcome.seconds:.1f} s, code {outcome.code}: {outcome.out[-300:]!r}")
                print(f"  {outcome.err[-1200:]!r}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    _print_counts(counts)
    seconds = time.monotonic() - started
    print(f"{count - first:,} cases, seed {seed}: {broken} broke a rule ({seconds:.0f} s)")
    return min(broken, 1)


def _print_counts(counts: Counter[tuple[str, str]]) -> None:
    codes = sorted({code for _, code in counts})
    print(f"\n{'kind':10}" + "".join(f"{'exit ' + code:>9}" for code in codes))
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(f"{kind:10}" + "".join(f"{counts[kind, code]:9}" for code in codes))
    totals = [sum(n for (_, code), n in counts.items() if code == wanted) for wanted in codes]
    print(f"{'all':10}" + "".join(f"{total:9}" for total in totals))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
