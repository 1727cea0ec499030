"""What a process gives up before it runs code that nobody has read. POSIX.

Three layers: limits of the system; on Linux a filter of system calls, which the kernel keeps;
and everywhere an audit hook, which Python keeps and native code could get around.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from typing import Any

MAX_FILES = 32
# What code may do, by the name of the audit event (Python's documentation, "Audit events table").
EVENTS = frozenset({
    "array.__new__", "builtins.id", "compile", "cpython.PyInterpreterState_Clear",
    "cpython._PySys_ClearAuditHooks", "exec", "import", "marshal.loads", "object.__delattr__",
    "object.__getattr__", "object.__setattr__", "open", "os.listdir", "sys._getframe",
    "sys._getframemodulename", "sys.excepthook", "sys.unraisablehook",
})  # fmt: skip
# What leads to the hook itself.
GUARDED = frozenset({
    ("object.__getattr__", "tb_frame"), ("object.__setattr__", "__code__"),
    ("object.__delattr__", "__code__"),
})  # fmt: skip
# Modules that reach the system, raw memory or an interpreter without the hook.
DENIED = frozenset({
    "_ctypes", "_dbm", "_gdbm", "_interpreters", "_interpqueues", "_multiprocessing",
    "_posixshmem", "_posixsubprocess", "_socket", "_sqlite3", "_ssl", "_testbuffer", "_testcapi",
    "_testinternalcapi", "_testlimitedcapi", "_xxsubinterpreters", "asyncio", "ctypes", "curses",
    "dbm", "faulthandler", "fcntl", "ftplib", "http", "mmap", "multiprocessing", "nt", "posix",
    "pty", "readline", "resource", "select", "shutil", "signal", "smtplib", "socket", "sqlite3",
    "ssl", "subprocess", "syslog", "tempfile", "termios", "tkinter", "webbrowser",
})  # fmt: skip
OS_KEPT = frozenset({
    "PathLike", "fsdecode", "fsencode", "fspath", "getcwd", "getenv", "getpid", "getuid",
    "listdir", "lstat", "scandir", "stat", "stat_result", "strerror", "terminal_size", "urandom",
})  # fmt: skip

# The system calls of a process that computes, by machine: audit number, openat, all others
# (Linux's unistd.h). Memory, its own files and signals, clocks, random numbers, the end.
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, 257, (
        0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 35, 39, 60, 79, 96, 98, 100, 131,
        202, 217, 219, 228, 229, 230, 231, 262, 267, 318, 332)),
    "aarch64": (0xC00000B7, 56, (
        17, 57, 61, 62, 63, 64, 78, 79, 80, 93, 94, 98, 101, 113, 114, 115, 124, 128, 132, 134,
        135, 139, 153, 165, 169, 172, 214, 215, 216, 222, 226, 233, 278, 291)),
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER, SIGKILL = 2, 9


def confine(cpu_seconds: int, memory_bytes: int) -> bool:
    """Give up all but computing, for good; True when the kernel sees to it, not only Python."""
    _set_limits(cpu_seconds, memory_bytes)
    sealed = sys.platform == "linux" and _filter_system_calls()
    _strip_os()
    for name in [name for name in sys.modules if name.split(".")[0] in DENIED]:
        del sys.modules[name]
    _refuse_events()
    return sealed


def _set_limits(cpu_seconds: int, memory_bytes: int) -> None:
    limits = {
        "RLIMIT_CPU": cpu_seconds, "RLIMIT_AS": memory_bytes, "RLIMIT_DATA": memory_bytes,
        "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": MAX_FILES,
    }  # fmt: skip
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):  # macOS does not limit address space
            continue


def _filter_system_calls() -> bool:
    """Have the kernel refuse every other system call (seccomp_filter in its documentation).

    openat stays, for reading: modules of the library are read when they are imported.
    """
    if os.uname().machine not in SYSTEM_CALLS:
        return False
    try:
        import ctypes
    except ImportError:  # a Python built without libffi
        return False
    program = _filter_program(*SYSTEM_CALLS[os.uname().machine])
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    prctl = ctypes.CDLL(None).prctl

    def set_option(option: int, value: int, pointer: bytes | None = None) -> bool:
        arguments = [ctypes.c_ulong(value), ctypes.c_char_p(pointer)]
        return bool(prctl(option, *arguments, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0)

    return (
        set_option(PR_SET_PDEATHSIG, SIGKILL)
        and set_option(PR_SET_NO_NEW_PRIVS, 1)
        and set_option(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header)
    )


def _filter_program(
    arch: int, openat: int, others: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """BPF lines (code, lines to skip if true, if false, operand); struct seccomp_data is read."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
    number_at, arch_at, flags_at = 0, 4, 16 + 2 * 8  # flags: openat's third argument
    program = [(load, 0, 0, arch_at), (equal, 1, 0, arch), (give, 0, 0, kill)]
    program.append((load, 0, 0, number_at))
    for number in others:
        program += [(equal, 0, 1, number), (give, 0, 0, allow)]
    program += [(equal, 1, 0, openat), (give, 0, 0, refuse), (load, 0, 0, flags_at)]
    return [*program, (any_bit, 0, 1, WRITING), (give, 0, 0, refuse), (give, 0, 0, allow)]


def _strip_os() -> None:
    """Take the functions out of `os`: not every one of them raises an audit event."""
    for module in (sys.modules["posix"], os):
        for name, value in list(vars(module).items()):
            error = isinstance(value, type) and issubclass(value, BaseException)
            if callable(value) and name not in OS_KEPT and name[0] != "_" and not error:
                delattr(module, name)


def _refuse_events() -> None:
    """Hook: only EVENTS, no module of DENIED, no file but the library's.

    The hook's names are its own: what the code puts into `builtins` or this module is not asked.
    """
    folders = tuple(path for path in sys.path if path)
    installed = "-packages"  # site-packages may lie inside: our data sets with their tests too
    events, denied, guarded = EVENTS, DENIED, GUARDED
    text, no_module, no_permission = str, ImportError, PermissionError

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in events:
            raise no_permission(f"{event} is not allowed here")
        if event == "import":
            if args[0].split(".")[0] in denied:
                raise no_module(f"{args[0]} is not to be had here")
        elif event in {"open", "os.listdir"}:
            path = args[0]
            known = type(path) is text and path.startswith(folders)
            if not known or ".." in path or installed in path:
                raise no_permission("only files of the standard library are read here")
        elif event.startswith("object.") and (event, args[1]) in guarded:
            raise no_permission(f"{args[1]} is not to be had here")

    sys.addaudithook(hook)
