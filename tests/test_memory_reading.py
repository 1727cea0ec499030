import resource
import subprocess
import sys

import mlx.core as mx
import psutil
import pytest

from mlx_ft import memory_reading
from mlx_ft.memory_reading import MACHINE, Reader, cgroup_limits, limits

MB = 1024**2


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_a_limit_of_cgroup_v2_counts_file_cache_as_free(tmp_path):
    (tmp_path / "membership").write_text("0::/job/step\n")
    group(
        tmp_path / "fs/job/step",
        memory__max=800 * MB,
        memory__current=500 * MB,
        memory__stat=f"anon 1\nactive_file {20 * MB}\ninactive_file {100 * MB}",
    )
    (found,) = cgroup_limits(tmp_path / "fs", tmp_path / "membership")
    assert (found.total, found.available) == (800 * MB, 420 * MB)
    assert found.name == "the container's memory limit (memory.max)"


def test_the_limits_of_the_groups_above_count_too(tmp_path):
    (tmp_path / "membership").write_text("0::/job/step\n")
    group(tmp_path / "fs/job/step", memory__max="max", memory__current=5)
    group(tmp_path / "fs/job", memory__max=700 * MB, memory__current=650 * MB)
    (found,) = cgroup_limits(tmp_path / "fs", tmp_path / "membership")
    assert (found.total, found.available) == (700 * MB, 50 * MB)


def test_in_a_container_the_groups_path_may_be_the_hosts(tmp_path):
    (tmp_path / "membership").write_text("0::/system.slice/docker-0a1b.scope\n")
    group(tmp_path / "fs", memory__max=2048 * MB, memory__current=48 * MB)
    (found,) = cgroup_limits(tmp_path / "fs", tmp_path / "membership")
    assert (found.total, found.available) == (2048 * MB, 2000 * MB)


def test_cgroup_v1(tmp_path):
    (tmp_path / "membership").write_text("5:cpu:/\n4:memory:/box\n0::/\n")
    group(
        tmp_path / "fs/memory/box",
        memory__limit_in_bytes=900 * MB,
        memory__usage_in_bytes=300 * MB,
        memory__stat=(
            f"inactive_file 1\nactive_file 1\n"
            f"total_inactive_file {40 * MB}\ntotal_active_file {2 * MB}"
        ),
    )
    group(
        tmp_path / "fs/memory",
        memory__limit_in_bytes=9223372036854771712,
        memory__usage_in_bytes=1,
    )
    (found,) = cgroup_limits(tmp_path / "fs", tmp_path / "membership")
    assert (found.total, found.available) == (900 * MB, 642 * MB)


def test_no_control_groups(tmp_path):
    assert cgroup_limits(tmp_path, tmp_path / "none") == []


def test_ulimit_counts_the_virtual_size(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4000 * MB, resource.RLIM_INFINITY))
    found = {limit.name: limit for limit in limits(rss=200 * MB, virtual=1500 * MB)}
    ulimit = found["the limit of `ulimit -v`"]
    assert (ulimit.total, ulimit.available) == (2700 * MB, 2500 * MB)
    assert found[MACHINE].total == psutil.virtual_memory().total


def test_a_reading_is_of_this_process_and_moment():
    reader = Reader("cpu")
    before = reader()
    held = mx.zeros(4 * MB, dtype=mx.uint8)
    mx.eval(held)
    after = reader()
    assert after.mlx_active >= before.mlx_active + 4 * MB
    assert after.mlx_peak >= after.mlx_active
    assert after.rss == pytest.approx(psutil.Process().memory_info().rss, rel=0.3)
    assert 0 < after.available <= after.total <= psutil.virtual_memory().total
    assert after.device_total is None


def test_the_hosts_figures_are_not_asked_for_at_every_step(monkeypatch):
    asked = []
    ask = memory_reading.limits

    def counted(rss, virtual):
        asked.append(rss)
        return ask(rss, virtual)

    monkeypatch.setattr(memory_reading, "limits", counted)
    reader, eager = Reader("cpu", every=60), Reader("cpu", every=-1)
    for _ in range(5):
        reader()
    assert len(asked) == 1
    for _ in range(5):
        eager()
    assert len(asked) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no ulimit -v")
def test_a_real_ulimit_binds():
    code = """
import resource
from mlx_ft import runtime; runtime.prepare()
from mlx_ft.memory_reading import Reader
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, -1))
print(Reader("cpu")().bound, Reader("cpu")().available)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bound, available = out.stdout.strip().rsplit(" ", 1)
    assert bound == "the limit of `ulimit -v`"
    assert 0 < int(available) < 3 * 2**30
