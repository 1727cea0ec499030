"""`mlx-ft serve` on the embedded model: adapters in one batch, speed, latency, clients, start.

    python benchmarks/serve.py [--quick] [--repeats 5] [--llama] [--only PART ...] [--json FILE]
                               [--plot FILE]

Float32, greedy, a server in a process of its own; eight adapters of rank 8 on all projections,
with random numbers in place of what training gives. Medians of --repeats, by turns where two are
compared.

mixed     8 clients, each with its own adapter, at once; against one after another as a server with
          one active adapter does it: load, ask, unload. The same questions, so the same tokens.
          Each answer is compared with that of the adapter alone.
stream    one client: tokens/s from the first token to the last of the base and of an adapter;
          mlx-lm's `stream_generate` with the same BLAS on the same weights; with --llama
          llama.cpp on float32 and q8_0 GGUF files of them (node-llama-cpp, as .ci/peers.sh has it)
answers   seconds of an answer of 200 tokens: median and 95th percentile
switch    seconds of making another adapter the active one, and of the base's coming back
clients   1, 4, 16 and 64 that ask for 32 tokens each, again and again, all of them the base or
          one of the adapters: seconds of an answer and tokens/s of all together
start     seconds from the command to the first request that is answered
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import serving
from measuring import median
from serving import ADAPTERS, BASE, MODEL, QUESTIONS, QUICK, SPEED, STORY, Answer, Client, Size

PARTS = ("mixed", "stream", "answers", "switch", "clients", "start")


def adapters(folder: Path) -> dict[str, Path]:
    """Made in a process of its own: this one stays small."""
    measuring.run([sys.executable, str(SPEED / "adapters.py"), str(folder), *ADAPTERS])
    return {name: folder / name for name in ADAPTERS}


async def mixed(client: Client, size: Size) -> dict[str, Any]:
    """Eight adapters at once, and one after another."""
    pairs = [*zip(ADAPTERS, QUESTIONS, strict=True)]
    began = time.perf_counter()
    apart = []
    for adapter, question in pairs:
        await client.post(f"/api/adapters/{adapter}/load")
        apart.append(await client.ask(MODEL, question, size.short))
        await client.post("/api/adapters/unload")
    one_by_one = time.perf_counter() - began
    began = time.perf_counter()
    together = await asyncio.gather(*(client.ask(*pair, size.short) for pair in pairs))
    at_once = time.perf_counter() - began
    equal = sum(a.text == b.text for a, b in zip(apart, together, strict=True))
    return {
        "one after another": sum(answer.tokens for answer in apart) / one_by_one,
        "at once": sum(answer.tokens for answer in together) / at_once,
        "equal": equal,
    }


async def streams(
    client: Client, size: Size, repeats: int, folder: Path, files: Sequence[Path]
) -> dict[str, Any]:
    """Rates of one client's answers by turns with those of the peers. files: for llama.cpp."""
    measuring.run([sys.executable, str(SPEED / "model.py"), str(folder / "model")])
    rates: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    for model in ("base", ADAPTERS[0]):
        await client.ask(model, STORY, 2)  # its prompt is known from now on
    for _ in range(repeats):
        for model, name in (("base", BASE), (ADAPTERS[0], "an adapter")):
            answer = await client.ask(model, STORY, size.long)
            rates.setdefault(name, []).append(answer.rate)
            texts[name] = answer.text
        peers = {"mlx-lm, same BLAS": serving.mlx_lm(folder / "model", size, folder)}
        peers |= {
            f"llama.cpp, {file.stem}": serving.llama_cpp(file, size, folder) for file in files
        }
        for name, (_, found) in peers.items():
            rates.setdefault(name, []).append((found["tokens"] - 1) / found["decoding"])
            texts[name] = found["text"]
    same = {name: texts[name].strip() == texts[BASE].strip() for name in texts}
    return {"rates": rates, "same text": same}


async def switches(client: Client, size: Size) -> dict[str, float]:
    """Medians of seconds."""
    loads, unloads = [], []
    for adapter in itertools.islice(itertools.cycle(ADAPTERS), size.switches):
        loads.append(await client.post(f"/api/adapters/{adapter}/load"))
        unloads.append(await client.post("/api/adapters/unload"))
    return {"load": median(loads), "load, longest": max(loads), "unload": median(unloads)}


async def crowd(client: Client, count: int, size: Size) -> dict[str, float]:
    """So many clients, each asking again when it was answered."""
    who = [MODEL, *ADAPTERS]

    async def one(number: int) -> list[Answer]:
        found = []
        for turn in range(size.rounds):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            found.append(await client.ask(who[number % len(who)], question, size.asked))
        return found

    began = time.perf_counter()
    answers = [*itertools.chain(*await asyncio.gather(*map(one, range(count))))]
    seconds = time.perf_counter() - began
    return {
        "clients": count,
        "tokens/s": sum(answer.tokens for answer in answers) / seconds,
        "median": median(answer.whole for answer in answers),
        "p95": percentile([answer.whole for answer in answers], 95),
        "first": median(answer.first for answer in answers),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]


async def measure(
    url: str, size: Size, repeats: int, folder: Path, files: Sequence[Path], parts: Sequence[str]
) -> dict[str, Any]:
    """All that a running server is asked for."""
    client = Client(url)
    found: dict[str, Any] = {}
    try:
        for adapter in ADAPTERS:  # read from the disk, and its question known
            await client.post(f"/api/adapters/{adapter}/load")
        await client.post("/api/adapters/unload")
        if "mixed" in parts:
            # The first time prompts are read; from then on they are known, to both ways alike.
            rounds = [await mixed(client, size) for _ in range(repeats + 1)]
            found["mixed"] = rounds[1:]
        if "stream" in parts:
            found["stream"] = await streams(client, size, repeats, folder, files)
        if "answers" in parts:
            answers = [await client.ask("base", STORY, size.long) for _ in range(size.answers)]
            found["answers"] = [answer.whole for answer in answers]
        if "switch" in parts:
            found["switch"] = await switches(client, size)
        if "clients" in parts:
            found["clients"] = [await crowd(client, count, size) for count in size.clients]
    finally:
        await client.http.aclose()
    return found


def say(found: dict[str, Any], size: Size) -> None:
    """The figures as tables."""
    if seconds := found.get("start"):
        print(f"start: {median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})\n")
    if "mixed" in found:
        say_mixed(found["mixed"])
    if "stream" in found:
        rates, same = found["stream"]["rates"], found["stream"]["same text"]
        own = median(rates[BASE])
        lines = [
            [name, f"{median(values):.1f}", f"{min(values):.1f}-{max(values):.1f}",
             f"{own / median(values):.2f}x", str(same[name])]
            for name, values in rates.items()
        ]  # fmt: skip
        head = ["one client", "tokens/s", "range", "the base is", "same text"]
        print(measuring.table(head, lines))
    if whole := found.get("answers"):
        print(f"\n{size.long} tokens: median {median(whole):.2f} s, 95th percentile "
              f"{percentile(whole, 95):.2f} s of {len(whole)}\n")  # fmt: skip
    if "switch" in found:
        lines = [[name, f"{1000 * value:.1f}"] for name, value in found["switch"].items()]
        print(measuring.table(["an adapter", "ms"], lines) + "\n")
    keys = ("tokens/s", "median", "p95", "first")
    if crowds := found.get("clients"):
        lines = [[f"{one['clients']}", *(f"{one[key]:.2f}" for key in keys)] for one in crowds]
        print(measuring.table(["clients", *keys], lines))


def say_mixed(rounds: Sequence[dict[str, Any]]) -> None:
    """Of `mixed`."""
    lines = [
        [kind, f"{median(one[kind] for one in rounds):.1f}"]
        for kind in ("one after another", "at once")
    ]
    print(measuring.table(["8 adapters", "tokens/s"], lines))
    ratio = median(one["at once"] / one["one after another"] for one in rounds)
    equal = ", ".join(str(one["equal"]) for one in rounds)
    print(f"{ratio:.2f} times; answers equal to those of the adapter alone, of 8: {equal}\n")


def draw(found: Sequence[dict[str, float]], axes: Any) -> None:
    left, right = axes
    x = [one["clients"] for one in found]
    for at, (key, label) in enumerate({"median": "median", "p95": "95th percentile"}.items()):
        left.plot(x, [one[key] for one in found], marker=measuring.MARKERS[at],
                  color=measuring.COLOURS[at], label=label)  # fmt: skip
    left.legend(frameon=False)
    left.set_ylabel("s of an answer")
    right.plot(x, [one["tokens/s"] for one in found], marker="o", color=measuring.COLOURS[2])
    right.set_ylabel("tokens/s, all together")
    for one in axes:
        one.set_xscale("log", base=2)
        one.set_xticks(x, [str(int(clients)) for clients in x])
        one.set_xlabel("clients")
        one.set_ylim(bottom=0)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    parser.add_argument("--llama", action="store_true", help="llama.cpp, too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=", ".join(PARTS))  # fmt: skip
    arguments = parser.parse_args()
    size, about = (QUICK if arguments.quick else Size()), measuring.machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        given = [f"--adapter={name}={path}" for name, path in adapters(folder).items()]
        files = serving.exported(folder) if arguments.llama else []
        seconds = []
        starts = arguments.repeats + 1 if "start" in arguments.only else 0
        for _ in range(starts):  # the first one is not counted
            server, took = serving.start(folder)
            server.end()
            server.close()
            seconds.append(took)
        server, _ = serving.start(folder, *given)
        try:
            asked = size, arguments.repeats, folder, files, arguments.only
            found = asyncio.run(measure(server.url, *asked))
        finally:
            server.close()
    found["start"] = seconds[1:]
    say(found, size)
    measuring.keep(arguments.json, found, about)
    if "clients" in found:
        measuring.plot(arguments.plot, lambda axes: draw(found["clients"], axes), columns=2)


if __name__ == "__main__":
    main()
