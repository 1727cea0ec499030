"""The metric that runs code: what passes, what fails, and what hostile answers cannot do."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.code_tests import run
from mlx_ft.code_tests.run import Limits, Verdict, bad_tests, extract_code, run_tests
from mlx_ft.errors import MlxFtError
from mlx_ft.metrics import Case, PythonTests, build_metric, judge_all
from tests.hostile_answers import HOSTILE

DOUBLE = "def double(x):\n    return 2 * x"
TESTS = ["assert double(2) == 4", "assert double('ab') == 'abab'", "assert double([1]) == [1, 1]"]
QUICK = Limits(cpu_seconds=1, wall_seconds=4.0, memory_bytes=256 * 1024 * 1024)
# For what has to pass, on however busy a machine.
PATIENT = Limits(cpu_seconds=30, wall_seconds=60.0)


def judge(code: str, tests: list[str] | None = None, limits: Limits = QUICK) -> Verdict:
    return run_tests(textwrap.dedent(code), TESTS if tests is None else tests, limits=limits)


# Right and wrong


def test_right_code_passes_and_wrong_code_fails() -> None:
    assert judge(DOUBLE, limits=PATIENT).passed
    assert judge("double = lambda x: x + x", limits=PATIENT).passed
    wrong = judge("def double(x): return x", limits=PATIENT)
    assert not wrong.passed
    assert wrong.reason.startswith("test 1: AssertionError")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "NameError"),
        ("def double(x) return 2 * x", "SyntaxError"),
        ("Sorry, I cannot do that.", "SyntaxError"),
        ("def twice(x):\n    return 2 * x", "NameError"),
        ("def double():\n    return 4", "TypeError"),
        ("def double(x):\n    return 1 / 0", "ZeroDivisionError"),
        ("def double(x):\n    return 2 * x if x == 2 else 0", "test 2"),
        ("double = 4", "TypeError"),
        ("def double(x):\n    return double(x)", "RecursionError"),
        ("\x00", "Error"),
        ("(" * 10_000, "Error"),
    ],
)
def test_code_that_fails_says_why(code: str, reason: str) -> None:
    verdict = judge(code, limits=PATIENT)
    assert not verdict.passed
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(xs): xs.append(3)", "xs = [1]\nassert f(xs) is None\nassert xs == [1, 3]"),
        ("def f(d): d.pop('a')", "d = {'a': 1, 'b': 2}\nf(d)\nassert d == {'b': 2}"),
        ("def f(n): return lambda m: n + m", "assert f(2)(3) == 5"),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
        (
            "import itertools\ndef f(): return itertools.count()",
            "import itertools\nassert list(itertools.islice(f(), 2)) == [0, 1]",
        ),
        ("def f(): raise ValueError('no')", "try:\n    f()\nexcept ValueError:\n    pass\n"
         "else:\n    assert False"),
        ("import datetime\ndef f(d): return d + datetime.timedelta(1)",
         "import datetime\nassert f(datetime.date(2024, 2, 28)) == datetime.date(2024, 2, 29)"),
        ("from decimal import Decimal\ndef f(): return Decimal('0.1'), {1, 2}, b'x', 1.5, None",
         "import decimal\nassert f() == (decimal.Decimal('0.1'), {1, 2}, b'x', 1.5, None)"),
        ("import collections, re\ndef f(t): return collections.Counter(re.findall(r'\\w+', t))",
         "assert f('a b a') == {'a': 2, 'b': 1}"),
        ("f = 10 ** 30", "assert f == 10 ** 30"),
        ("def f(**k): return sorted(k.items())", "assert f(b=1, a=2) == [('a', 2), ('b', 1)]"),
        ("def f(): return 2", "assert [f() for _ in range(2)] == [2, 2]"),
        ("def f(): return 'ü\\ud800\\n'", "assert f() == 'ü\\ud800\\n'"),
        ("print('hello')\ndef f(): print('there'); return 1", "assert f() == 1"),
        ("import threading, queue, logging, pathlib, typing, dataclasses, random\nf = 1",
         "assert f == 1"),
        ("if __name__ == '__main__':\n    raise SystemExit\ndef f(): return 1", "assert f() == 1"),
    ],
)  # fmt: skip
def test_values_go_between_the_processes(code: str, test: str) -> None:
    verdict = judge(code, [test])
    assert verdict.passed, verdict.reason


def test_values_that_are_asked_for() -> None:
    verdict = run_tests(DOUBLE, TESTS, values=["double(3)", "{double('b'), 'a'}", "double(1.5)"])
    assert verdict.values == ("6", "{'a', 'bb'}", "3.0")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here you are:\n```py\nx = 1\n```\nThis sets x.\n```\nx = 2\n```", "x = 1\n"),
        ("```\nx = 1", "x = 1"),
        ("```bash\npip\n```\n``` Python title=a\nx = 1\n```", "x = 1\n"),
    ],
)
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text) == code


# Hostile answers: none may pass, none may do harm


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_do_not_pass_and_do_no_harm(name: str) -> None:
    mark = Path("/tmp/mlx_ft_was_here")
    mark.unlink(missing_ok=True)
    start = time.monotonic()
    verdict = judge(HOSTILE[name])
    assert not verdict.passed
    assert verdict.reason
    assert time.monotonic() - start < 20
    assert not mark.exists()
    assert not children_left()


def children_left() -> list[str]:
    """Command lines of processes that the sandbox left behind."""
    found = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    ours = [line for line in found.stdout.splitlines() if "mlx_ft.code_tests.child" in line]
    return [line for line in ours if line.split()[0] in ("1", str(os.getpid()))]


def test_a_test_of_builtins_alone_is_no_test() -> None:
    """An answer cannot put its own `abs` before a test's, so a test must name the answer's."""
    assert judge("def f(x): return 9\ndef abs(x): return 0", ["assert abs(f(1) - 2) < 1"]).reason
    assert bad_tests(["assert abs(-1) == 1"])
    assert bad_tests(["import math\nassert math.sqrt(4) == 2"])
    assert not bad_tests(["assert abs(f(1) - 2) < 1", "x = [1]\nassert f(x) == x"])


@pytest.mark.parametrize(
    "tests", [None, [], "assert f()", [1], ["f(1) == 2"], ["assert f("], ["assert True"]]
)
def test_bad_tests_are_named(tests: Any) -> None:
    assert bad_tests(tests)
    with pytest.raises(ValueError, match="test"):
        PythonTests()("f = 1", "f = 1", {"tests": tests})


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_the_kernel_refuses_what_the_hook_would_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hook, rlimits or stripped `os`: only the filter stands between code and system."""
    start = run.START.replace(
        "from mlx_ft.code_tests.child import main",
        "import mlx_ft.code_tests.confine as c; from mlx_ft.code_tests.child import main; "
        "c._refuse_events = c._strip_os = lambda: None; c._set_limits = lambda *a: None",
    )
    monkeypatch.setattr(run, "START", start)
    code = """
        import os, errno
        def denied(action):
            try:
                action()
            except OSError as error:
                return error.errno == errno.EPERM
            return False
        def write(): open("x", "w")
        def make(): os.mkfifo("x")
        def fork(): os.fork()
        def spawn(): os.posix_spawn("/bin/true", ["true"], {})
        def kill(): os.kill(os.getppid(), 0)
        def remove(): os.unlink("/tmp/x")
        def rename(): os.rename("/tmp/x", "/tmp/y")
        def change(): os.chmod("/tmp", 0o777)
        def session(): os.setsid()
        def connect():
            import _socket
            _socket.socket()
        def allowed(): return [f.__name__ for f in ALL if not denied(f)]
        ALL = [write, make, fork, spawn, kill, remove, rename, change, session, connect]
        """
    verdict = run_tests(
        textwrap.dedent(code), ["assert allowed() is not None"], values=["allowed()"]
    )
    assert verdict.sealed
    assert verdict.values == ("[]",), verdict.reason


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "START", "print('no such module')")
    with pytest.raises(MlxFtError, match="no such module"):
        judge(DOUBLE)


def test_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    code = "import os, sys\ndef f(): return dict(os.environ), sys.stdin.read(), os.getcwd()"
    verdict = run_tests(code, ["assert f"], values=["f()[0].get('SECRET_TOKEN')", "f()[1]"])
    assert verdict.values == ("None", "''")
    (folder,) = run_tests(code, ["assert f"], values=["f()[2]"]).values
    assert folder.strip("'") != str(Path.cwd())
    assert not Path(folder.strip("'")).exists()


# As a metric


def test_metric() -> None:
    metric = build_metric("python_tests")
    assert metric.name == "python_tests"
    row = {"tests": TESTS}
    assert metric(f"```python\n{DOUBLE}\n```", "", row)
    assert not metric("def double(x): return x", "", row)
    with pytest.raises(ValueError, match="no `tests`"):
        metric(DOUBLE, DOUBLE)


def test_judgements_keep_their_order() -> None:
    codes = [DOUBLE if at % 3 else "while True: pass" if at == 3 else "x" for at in range(9)]
    cases = [Case(code, "", {"tests": TESTS}) for code in codes]
    taken: list[int] = []

    def watched() -> Any:
        for at, case in enumerate(cases):
            taken.append(at)
            yield case

    judged = judge_all(PythonTests(workers=3), watched())
    assert taken == []
    first = next(judged)
    assert len(taken) <= 4  # no further ahead than there are workers
    assert [first, *judged] == [(case, case.prediction == DOUBLE) for case in cases]
