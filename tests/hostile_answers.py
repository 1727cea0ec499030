"""Answers that would pass `double(2) == 4` unfairly, or harm the machine, if they could."""

FORK = "import os\ndef double(x):\n    while True:\n        os.fork()"
SPAWN = "import _posixsubprocess\n_posixsubprocess.fork_exec()"
HOSTILE = {
    "equal to everything": "class Yes:\n    def __eq__(self, other): return True\n"
    "def double(x): return Yes()",
    "a str equal to everything": "class Yes(str):\n    def __eq__(self, other): return True\n"
    "    __hash__ = None\ndef double(x): return Yes()",
    "a list equal to everything": "class Yes(list):\n    def __eq__(self, other): return True\n"
    "def double(x): return Yes()",
    "prints a success marker": "import sys\nfor w in ('passed', 'ok', '{\"token\": \"\"}'):\n"
    "    print(w); sys.__stdout__.write(w); sys.stderr.write(w)\ndef double(x): return 0",
    "exits with success": "import os\nos._exit(0)",
    "exits within a call": "import sys\ndef double(x): sys.exit(0)",
    "exits by SystemExit": "raise SystemExit(0)",
    "shuts the interpreter down": "def double(x):\n    import os, signal\n    os.abort()",
    "patches the builtins": "import builtins\nbuiltins.AssertionError = type('A', (), {})\n"
    "builtins.__build_class__ = builtins.compile = builtins.exec = lambda *a, **k: None\n"
    "def double(x): return 0",
    "brings its own names to the tests": "def double(x): return 0\n"
    "def __eq__(*a): return True\nAssertionError = abs = sorted = len = lambda *a: 4",
    "catches everything": "def double(x):\n    while True:\n        try:\n"
    "            raise BaseException\n        except BaseException:\n            return 0",
    "walks its frames": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    for v in list(frame.f_locals.values()):\n"
    "        if isinstance(v, dict): v.update(token='', passed=True, value=4)\n"
    "    frame = frame.f_back\ndef double(x): return 0",
    "rewrites the harness": "import sys\nfor m in list(sys.modules.values()):\n"
    "    for n in ('judge', 'ask', 'encode', 'serve', 'NotDataError', 'decode'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\ndef double(x): return 0",
    "answers in the harness's place": "import gc, sys\nframe = sys._getframe()\n"
    "while frame:\n    c = frame.f_locals.get('channel')\n"
    "    if c:\n        for _ in range(50): c.send({'value': True, 'args': [None]})\n"
    "    frame = frame.f_back\ndef double(x): return 0",
    "says a token": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    c = frame.f_locals.get('channel')\n"
    "    if c: c.send({'token': 'x', 'ready': True, 'values': []})\n"
    "    frame = frame.f_back\ndef double(x): return 0",
    "looks for the expected values": "import gc\ndef double(x):\n"
    "    return next(o for o in gc.get_objects() if isinstance(o, int))",
    "deletes its frames": "import sys\nsys._getframe().f_back.f_locals.clear()\n"
    "sys.modules.clear()\ndef double(x): return 0",
    "raises an exception of its own": "class E(BaseException):\n"
    "    def __str__(self): raise self\ndef double(x): raise E",
    "names an exception AssertionError": "class AssertionError(BaseException): pass\n"
    "def double(x): raise AssertionError",
    "loops for ever": "while True: pass",
    "loops in one C call": "def double(x): return sum(range(10 ** 15))",
    "sleeps": "import time\ntime.sleep(1000)",
    "waits for input": "input()\ndef double(x): return 0",
    "waits for a lock": "import threading\nlock = threading.Lock()\n"
    "lock.acquire()\nlock.acquire(timeout=99)",
    "takes memory": "def double(x):\n    return [0] * 10 ** 11",
    "takes memory bit by bit": "def double(x):\n    a = []\n"
    "    while True: a.append(a[:] + [0] * 999)",
    "says too much": "def double(x): return 'x' * 50_000_000",
    "says deep things": "def double(x):\n    a = []\n    for _ in range(100_000): a = [a]\n"
    "    return a",
    "says endless things": "def double(x):\n    while True: yield x",
    "overflows the stack": "import sys\nsys.setrecursionlimit(10 ** 9)\n"
    "def double(x): return double(x)",
    "forks": FORK,
    "fork bomb by threads": "import threading\ndef double(x):\n"
    "    while True: threading.Thread(target=double, args=(x,)).start()",
    "spawns": SPAWN,
    "runs a command": "import os\nos.system('touch /tmp/mlx_ft_was_here')\ndef double(x): return 0",
    "imports subprocess": "import subprocess\nsubprocess.run(['true'])",
    "imports socket": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "imports ctypes": "import ctypes\nctypes.CDLL(None).system(b'true')",
    "imports its system module anew": "import sys, importlib\nsys.modules.pop('posix')\n"
    "importlib.import_module('posix').fork()",
    "reads the passwords": "def double(x): return len(open('/etc/passwd').read()) * 0 + 2 * x",
    "reads through io": "import io\nX = io.FileIO('/etc/passwd').read()\n"
    "def double(x): return 2 * x",
    "reads from above": "import os\nX = open(os.path.dirname(os.__file__) + '/../../etc')\n"
    "def double(x): return 2 * x",
    "writes into its folder": "open('x', 'w').write('x')\ndef double(x): return 2 * x",
    "writes elsewhere": "open('/tmp/mlx_ft_was_here', 'w')\ndef double(x): return 2 * x",
    "writes through pathlib": "import pathlib\npathlib.Path('/tmp/mlx_ft_was_here').touch()\n"
    "def double(x): return 2 * x",
    "writes to an open file": "open(3, 'wb').write(b'{}')\ndef double(x): return 2 * x",
    "removes": "import os\nos.remove('/tmp/x')\ndef double(x): return 2 * x",
    "lists": "import os\nos.listdir('/')\ndef double(x): return 2 * x",
    "kills": "import os, signal\nos.kill(os.getppid(), 9)",
    "raises its limits": "import resource\ndef double(x): return 2 * x",
    "traces": "import sys\nsys.settrace(print)\ndef double(x): return 2 * x",
    "reaches the hook by its frame": "try:\n    open('/etc/passwd')\nexcept OSError as e:\n"
    "    e.__traceback__.tb_next.tb_frame\ndef double(x): return 2 * x",
}  # fmt: skip
