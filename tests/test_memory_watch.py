import errno
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mlx_ft.memory_estimate import Dimensions, Estimate
from mlx_ft.memory_reading import Reading
from mlx_ft.memory_watch import LEVELS, MemoryWatch, budget, is_out_of_memory
from mlx_ft.runtime import GIB

MB = 1024**2
JOB = Estimate(
    Dimensions(layers=30, hidden=576, intermediate=1536, heads=9, vocabulary=49152),
    parameters=134_515_008,
    weight_bits=32,
    trainable=4_884_480,
    adapted=30,
    rank=16,
    moments=2,
    float_bytes=4,
    checkpointed=0,
)
ROOMY = Reading(rss=1200 * MB, total=64 * GIB, available=60 * GIB, mlx_active=600 * MB)


class Machine:
    """Readings as a test sets them."""

    def __init__(self, reading=ROOMY):
        self.now = reading
        self.resets = 0

    def __call__(self):
        return self.now

    def set(self, **figures):
        self.now = replace(self.now, **figures)

    def reset_peak(self):
        self.resets += 1
        self.set(mlx_peak=self.now.mlx_active)


def watch(machine, limit_gb=None, device="cpu", job=JOB, short=False):
    return MemoryWatch(
        job, device=device, limit_gb=limit_gb, read=machine, reset_peak=machine.reset_peak,
        short=short,
    )  # fmt: skip


def mask(rows=8, columns=512, targets=0.25):
    """The first columns of each row are targets."""
    return np.tile(np.arange(columns) < columns * targets, (rows, 1))


# What MLX says


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the "
            "maximum allowed buffer size of 30150672384 bytes."
        ),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        RuntimeError("[malloc] Unable to allocate 17179869184 bytes."),
        RuntimeError(
            "[METAL] Command buffer execution failed: Insufficient Memory "
            "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
        ),
        RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
        RuntimeError("cudaGraphLaunch failed: cudaErrorMemoryAllocation"),
        RuntimeError("cublasLtMatmul(handle, desc) failed with code: 3."),
        RuntimeError("cudnnBackendExecute failed: CUDNN_STATUS_ALLOC_FAILED."),
        RuntimeError("std::bad_alloc"),
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}",
)
def test_out_of_memory_is_told_by_its_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error."),
        RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match"),
        RuntimeError("cudaMallocManaged failed: an illegal memory access was encountered"),
        RuntimeError("cublasLtMatmul(handle, desc) failed with code: 13."),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:40]}",
)
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)


# The budget


@pytest.mark.parametrize(
    ("figures", "limit_gb", "size", "bound"),
    [
        ({}, None, 0.95 * 64 * GIB, "this machine's memory"),
        ({}, 11.0, 11 * GIB, "memory_profile.memory_limit_gb=11"),
        ({"total": 4 * GIB, "bound": "the container"}, 11.0, 0.95 * 4 * GIB, "the container"),
        ({"device_total": 16 * GIB}, None, 0.95 * 16 * GIB, "the GPU's memory"),
        ({"device_total": 16 * GIB, "total": 4 * GIB}, 10.5, 10.5 * GIB, "memory_profile"),
    ],
)
def test_the_tightest_limit_is_the_budget(figures, limit_gb, size, bound):
    found = budget(replace(ROOMY, **figures), limit_gb)
    assert found.size == pytest.approx(size, abs=1)
    assert bound in found.bound


# Splitting


def test_a_machine_with_room_never_splits():
    machine = Machine()
    found = watch(machine).split(mask())
    assert found.need <= found.room
    assert (found.parts, found.pressure, found.refused) == (1, False, False)
    assert found.why == ""


def test_what_else_happens_on_the_machine_does_not_change_the_parts():
    parts = set()
    for available in (60, 30, 20, 16):
        machine = Machine(replace(ROOMY, available=available * GIB))
        parts.add(watch(machine, limit_gb=8.0).split(mask()).parts)
    assert parts == {2}


def test_parts_double_until_the_largest_fits_under_the_limit():
    eight = mask()
    limits = {12.0: 1, 8.0: 2, 5.5: 4, 5.0: 4, 2.8: 8}  # 3 parts would do at 5.5
    for limit_gb, parts in limits.items():
        found = watch(Machine(), limit_gb).split(eight)
        assert found.parts == parts
        assert found.need <= found.room
        assert JOB.step(8 // parts, 512, int(eight[: 8 // parts].sum())) < found.need


def test_the_floor_from_earlier_failures_is_kept_and_never_exceeds_the_rows():
    machine = Machine()
    assert watch(machine).split(mask(rows=8), at_least=4).parts == 4
    assert watch(machine).split(mask(rows=3), at_least=8).parts == 3
    assert watch(machine, limit_gb=3.0).split(mask(rows=5)).parts == 5


def test_why_is_said_once_for_so_many_parts():
    found = watch(Machine(), limit_gb=8.0)
    first, second = found.split(mask()), found.split(mask())
    assert "8 x 512 tokens is taken in 2 parts" in first.why
    assert "memory_profile.memory_limit_gb=8" in first.why
    assert second.parts == 2
    assert second.why == ""


def test_one_row_that_does_not_fit_is_said_and_tried_while_memory_is_free():
    found = watch(Machine(), limit_gb=1.5).split(mask(rows=4, columns=1024))
    assert found.parts == 4
    assert found.need > found.room
    assert found.pressure
    assert not found.refused  # the user's own wish, not the machine's end
    assert found.why


def test_one_row_beyond_what_the_machine_has_is_refused_on_the_cpu_only():
    poor = replace(ROOMY, total=3 * GIB, available=1 * GIB)
    assert watch(Machine(poor)).split(mask(columns=1024)).refused
    gpu = replace(poor, device_total=16 * GIB)
    assert not watch(Machine(gpu), device="metal").split(mask(columns=1024)).refused


def test_real_danger_splits_below_the_hard_limit_on_the_cpu_only():
    machine = Machine(replace(ROOMY, total=16 * GIB, available=14 * GIB))
    cpu = watch(machine)
    assert cpu.split(mask()).parts == 1
    machine.set(available=6 * GIB)  # another program took the rest
    found = cpu.split(mask())
    assert found.parts == 2
    assert "what is free now" in found.why
    machine = Machine(replace(ROOMY, total=16 * GIB, available=6 * GIB, device_total=16 * GIB))
    assert watch(machine, device="metal").split(mask()).parts == 1


def test_memory_that_the_process_has_but_does_not_hold_counts_as_free():
    machine = Machine(replace(ROOMY, total=16 * GIB, available=14 * GIB))
    found = watch(machine)
    machine.set(available=2 * GIB, rss=1200 * MB + 12 * GIB)  # kept by malloc after a step
    assert found.split(mask()).parts == 1


def test_memory_outside_mlx_counts_unless_the_gpu_has_its_own():
    reading = replace(ROOMY, rss=5 * GIB, device_total=64 * GIB)
    shared = watch(Machine(reading), limit_gb=12.0, device="metal")
    own = watch(Machine(reading), limit_gb=12.0, device="cuda")
    assert shared.split(mask()).parts == 2
    assert own.split(mask()).parts == 1


def test_pressure_begins_at_a_share_of_the_budget():
    need = watch(Machine()).split(mask()).need
    held = 1200 * MB

    def pressure(share):
        return watch(Machine(), (held + need) / share / GIB).split(mask()).pressure

    assert not pressure(0.79)
    assert pressure(0.81)


# Learning


def test_a_measured_need_replaces_the_estimate():
    found = watch(Machine(), limit_gb=8.0)
    assert found.split(mask()).parts == 2
    found.observe(mask(), JOB.step(8, 512, 1024) // 2)  # some technique that needs half
    assert found.split(mask()).parts == 1
    found.observe(mask(), 4 * JOB.step(8, 512, 1024))
    assert found.split(mask()).parts == 8


def test_the_largest_ratio_counts_and_noise_is_rounded_away():
    first, second = watch(Machine()), watch(Machine())
    estimated = JOB.step(2, 128, 64)
    for need in (1.01, 0.4, 0.9):
        first.observe(mask(2, 128), int(need * estimated))
    second.observe(mask(2, 128), int(1.03 * estimated))
    assert first.learned() == second.learned()
    assert first.split(mask(2, 128)).need == pytest.approx(1.05 * 2 ** (1 / 8) * estimated, rel=0.1)


def test_a_short_batch_does_not_vouch_for_a_long_one():
    found = watch(Machine())
    unseen = found.split(mask(8, 512)).need
    found.observe(mask(1, 16), JOB.step(1, 16, 4) // 4)
    assert found.split(mask(8, 512)).need >= unseen
    found.observe(mask(8, 256), JOB.step(8, 256, 512) // 4)
    assert found.split(mask(8, 256)).need < JOB.step(8, 256, 512)


def test_observing_measures_the_step_and_keeps_the_runs_peak():
    machine = Machine(replace(ROOMY, mlx_peak=9 * GIB))
    found = watch(machine)
    with found.observing(mask()):
        assert machine.resets == 1
        machine.set(mlx_peak=machine.now.mlx_active + 6 * GIB)
    alike = watch(Machine())
    alike.observe(mask(), 6 * GIB)
    assert found.learned() == alike.learned()
    assert found.peak == 9 * GIB


def test_a_step_that_raises_teaches_nothing():
    machine = Machine()
    found = watch(machine)
    before = found.learned()

    def step():
        with found.observing(mask()):
            machine.set(mlx_peak=50 * GIB)
            raise RuntimeError("[malloc] Unable to allocate 1 bytes.")

    with pytest.raises(RuntimeError):
        step()
    assert found.learned() == before


def test_a_resumed_run_splits_as_the_one_never_stopped():
    never_stopped, killed = watch(Machine(), 8.0), watch(Machine(), 8.0)
    for run in (never_stopped, killed):
        run.observe(mask(4, 256), int(0.7 * JOB.step(4, 256, 256)))
    resumed = watch(Machine(), 8.0)
    resumed.resume(killed.learned())
    for columns in (64, 256, 512, 1024):
        expected = never_stopped.split(mask(8, columns))
        assert replace(resumed.split(mask(8, columns)), why="") == replace(expected, why="")


# Between the steps


def test_each_level_is_warned_of_once():
    machine = Machine()
    found = watch(machine, limit_gb=10.0)
    said = []
    for used in (5.0, 9.1, 9.2, 8.0, 9.3, 10.5, 10.6, 9.5):
        machine.set(mlx_peak=int(used * GIB) - 600 * MB)
        said.append(found.check())
    notices = [notice for notice in said if notice]
    assert [bool(notice) for notice in said] == [
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert len(notices) == len(LEVELS)
    assert not any(notice.stop for notice in notices)
    assert "91%" in notices[0].message
    assert "memory_profile.memory_limit_gb=10" in notices[0].message


def test_growing_swap_with_nothing_available_stops_at_the_second_check():
    machine = Machine(replace(ROOMY, swap_total=8 * GIB))
    found = watch(machine)
    assert found.check() is None
    machine.set(available=1 * GIB, swap_used=1 * GIB)
    assert found.check() is None
    machine.set(available=GIB // 2, swap_used=2 * GIB)
    notice = found.check()
    assert notice is not None
    assert notice.stop
    assert "0.50 GB of 64.00 GB" in notice.message


def test_swap_that_does_not_grow_is_no_emergency():
    machine = Machine(replace(ROOMY, swap_total=8 * GIB, swap_used=2 * GIB))
    found = watch(machine)
    for available in (1000, 900, 950, 800):
        machine.set(available=available * MB)
        assert found.check() is None


def test_a_recovery_in_between_is_no_emergency():
    machine = Machine(ROOMY)
    found = watch(machine)
    for available in (1, 40, 1, 40):
        machine.set(available=available * GIB)
        assert found.check() is None


def test_without_swap_or_in_a_container_there_is_nothing_to_wait_for():
    container = {"bound": "the container", "swap_total": 8 * GIB}
    for figures in ({"swap_total": 0}, container):
        machine = Machine(replace(ROOMY, **figures))
        found = watch(machine)
        machine.set(available=1000 * MB)
        assert found.check() is None
        assert found.check() is None  # the same figures again: nothing new is known
        machine.set(available=900 * MB)
        notice = found.check()
        assert notice is not None
        assert notice.stop


# The real thing: one step that `ulimit -v` does not allow

STEP = """
import resource, sys
from mlx_ft import runtime; runtime.prepare()
import mlx.core as mx, numpy as np, psutil
from mlx_ft.memory_estimate import Dimensions, Estimate
from mlx_ft.memory_reading import Reader
from mlx_ft.memory_watch import MemoryWatch
mx.set_default_device(mx.cpu)
mx.eval(mx.zeros(4) @ mx.zeros((4, 4)))
room = 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, -1))

def step(rows):
    # One layer's activations as the estimate counts them: (8 * 256 + 5 * 1024 + 4 * 512) floats
    # per token and layer, two layers, nothing freed before the end.
    arrays = [mx.ones((rows * 512, 9216)) * i for i in range(2)]
    mx.eval(arrays)

job = Estimate(Dimensions(1, 256, 1024, 4, 100), 0, 32, 1, 1, 1, 0, 4, False)
watch = MemoryWatch(
    job, device="cpu", limit_gb=None, read=Reader("cpu"), reset_peak=mx.reset_peak_memory
)
mask = np.ones((32, 512), bool)
parts = watch.split(mask).parts if sys.argv[1] == "watched" else 1
for part in np.array_split(mask, parts):
    with watch.observing(part):
        step(len(part))
print(parts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a failed allocation fatal")
def test_a_step_that_would_end_the_process_is_split_before():
    def run(how):
        command = [sys.executable, "-c", STEP, how]
        return subprocess.run(command, capture_output=True, text=True)

    unwatched, watched = run("unwatched"), run("watched")
    assert unwatched.returncode < 0, unwatched.stderr
    assert watched.returncode == 0, watched.stderr
    assert int(watched.stdout) > 1


def test_a_limit_below_the_model_is_told_once():
    machine = Machine()
    watched = watch(machine, limit_gb=0.5)
    first, second = watched.split(mask()), watched.split(mask())
    assert "Training goes on above the limit" in first.why
    assert (first.parts, first.refused) == (8, False)
    assert (second.parts, second.why) == (8, "")
    told = watch(Machine(), limit_gb=0.5, short=True)  # when the run was accepted
    assert told.split(mask(rows=1)).why == ""
    assert watch(Machine(), limit_gb=0.5).split(mask(rows=1)).why != ""
