"""The two processes of one judgement: one holds the answer's code, the other its tests.

The judge forks the other one off before it reads the tests and the token, so they share no
memory. It sends calls and gets plain data back: an answer can neither say that it passed, nor
compare equal to everything, nor look at what is expected of it.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from typing import Any, BinaryIO, NoReturn

from mlx_ft.code_tests.confine import confine
from mlx_ft.code_tests.values import NotDataError, decode, encode, literal

MAX_LINE = 4_000_000  # bytes of one message
MAX_REASON = 300  # characters
Message = dict[str, Any]


class Channel:
    """Lines of JSON to and from the other process."""

    def __init__(self, source: int, target: int) -> None:
        self._source: BinaryIO = open(source, "rb")  # noqa: SIM115
        self._target: BinaryIO = open(target, "wb")  # noqa: SIM115

    def send(self, message: Message) -> None:
        """Write a message."""
        self._target.write(json.dumps(message).encode() + b"\n")
        self._target.flush()

    def receive(self) -> Message | None:
        """The next message; None when the other process has ended or says too much."""
        line = self._source.readline(MAX_LINE)
        return dict(json.loads(line)) if line.endswith(b"\n") else None


# The half that holds the answer. Once the code runs, nothing in this process can be trusted.


def serve(channel: Channel) -> None:
    """Run the answer's code, then do the calls that the judge sends, until it ends."""
    kept: list[Any] = []
    namespace: dict[str, Any] = {"__name__": "answer"}

    def keep(function: Any) -> int:
        kept.append(function)
        return len(kept) - 1

    def do(request: Message) -> Message:
        if "run" in request:
            exec(compile(request["run"], "<answer>", "exec"), namespace)  # noqa: S102
            return {"value": None}
        if "get" in request:
            return {"value": encode(namespace[request["get"]], keep)}
        args, kwargs = decode(request["args"]), decode(request["kwargs"])
        value = encode(kept[request["call"]](*args, **kwargs), keep)
        # What was given may have been changed in place.
        changeable = [arg if isinstance(arg, list | set | dict) else None for arg in args]
        return {"value": value, "args": [encode(arg, keep) for arg in changeable]}

    while (request := channel.receive()) is not None:
        try:
            reply = do(request)
        except BaseException as error:
            reply = {"raised": type(error).__name__, "text": str(error)[:MAX_REASON]}
        channel.send(reply)


# The half that holds the tests.


def ask(channel: Channel, request: Message) -> Message:
    """The answer's reply. Raises what the answer raised if that is built in, else NotDataError."""
    channel.send(request)
    reply = channel.receive()
    if reply is None:
        raise NotDataError("the process ended: too much time or memory, or its own doing")
    if "raised" not in reply:
        return reply
    kind = getattr(builtins, str(reply["raised"]), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        raise kind(reply["text"])
    mine = reply["raised"] == NotDataError.__name__
    raise NotDataError(reply["text"] if mine else f"{reply['raised']}: {reply['text']}")


class Remote:
    """A function of the answer, called in its own process."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the answer gives; lists, sets and dictionaries given are changed as it did."""
        request = {"call": self._number, "args": encode(args), "kwargs": encode(kwargs)}
        reply = ask(self._channel, request)
        for given, changed in zip(args, reply["args"], strict=True):
            if changed is not None:
                given.clear()
                (given.extend if isinstance(given, list) else given.update)(decode(changed))
        return decode(reply["value"], lambda number: Remote(self._channel, number))


class Names(dict[str, Any]):
    """A test's names: its own, Python's, and for the rest those of the answer."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def __missing__(self, name: str) -> Any:
        # Python's own win: an answer must not bring an `abs` or a `sorted` to its judge.
        if hasattr(builtins, name):
            raise KeyError(name)
        value = ask(self._channel, {"get": name})["value"]
        return decode(value, lambda number: Remote(self._channel, number))


def judge(channel: Channel, job: Message) -> Message:
    """What the parent is told: the token when every test ran through, else a reason."""
    at = "the code"
    try:
        ask(channel, {"run": job["code"]})
        for number, test in enumerate(job["tests"], 1):
            at = f"test {number}"
            exec(compile(test, "<test>", "exec"), Names(channel))  # noqa: S102
        at = "the values"
        values = [literal(eval(text, Names(channel))) for text in job["values"]]  # noqa: S307
    except BaseException as error:
        return {"reason": f"{at}: {type(error).__name__}: {error}"[:MAX_REASON]}
    return {"token": job["token"], "values": values}


def _quiet() -> None:
    """No standard input, nowhere to print to."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)


def _serve(source: int, target: int, limits: tuple[int, int]) -> NoReturn:
    end = os._exit
    try:
        _quiet()
        channel = Channel(source, target)
        confine(*limits)
        serve(channel)
    finally:
        end(0)


def main(cpu_seconds: int, memory_bytes: int) -> None:
    """Fork, confine both halves, judge. In: a job on standard input. Out: two lines of JSON."""
    limits = cpu_seconds, memory_bytes
    (calls, calling), (replies, replying) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(calling)
        os.close(replies)
        _serve(calls, replying, limits)
    os.close(calls)
    os.close(replying)
    channel = Channel(replies, calling)
    parent: BinaryIO = open(os.dup(1), "wb")  # noqa: SIM115, PTH123
    job = json.loads(sys.stdin.buffer.read())
    _quiet()
    sealed = confine(*limits)

    def tell(message: Message) -> None:
        parent.write(json.dumps(message).encode() + b"\n")
        parent.flush()

    tell({"ready": True, "sealed": sealed})
    tell(judge(channel, job))
