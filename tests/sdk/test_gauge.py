import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay._gauge import Busy, Machine, Memory
from forebay._pressure import PressureGauge, Reading

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
GIB = 2**30
NO_LIMIT_V1 = "9223372036854771712"
TICKS = os.sysconf("SC_CLK_TCK")

CGROUP = "/sys/fs/cgroup"
V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory\n"
)
MEMINFO = (
    "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 12582912 kB\nActive(anon): 7 kB\nSwapTotal: 8388608 kB\n"
)
STAT = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 100 10 20 900 50 3 4 5 60 0\ncpu1 200 0 40 800 50 0 0 0 0 0\nintr 5 6\n"


class Tree:
    """A folder with files as `/proc` and `/sys` have them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine = Machine(root)
        self.write({"/proc/meminfo": MEMINFO})

    def write(self, files: Mapping[str, str]) -> None:
        """Write *files*, by their absolute paths."""
        for path, text in files.items():
            target = self.root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def v2(self, path: str, files: Mapping[str, str], *, mounts: str = V2_MOUNT) -> Machine:
        """Put this process into the group *path* of version 2; *files* are below the mount."""
        self.write({"/proc/self/cgroup": f"0::{path}\n", "/proc/self/mountinfo": mounts})
        self.write({CGROUP + name: text for name, text in files.items()})
        return self.machine

    def v1(self, path: str, files: Mapping[str, str], *, mounts: str = V1_MOUNTS) -> Machine:
        """Put this process into the group *path* of version 1, under both controllers."""
        self.write({"/proc/self/cgroup": f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n"})
        self.write({"/proc/self/mountinfo": mounts, **{CGROUP + name: text for name, text in files.items()}})
        return self.machine


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def all_processors() -> float:
    return float(len(os.sched_getaffinity(0)))


# --- CPU quotas ----------------------------------------------------------------------------------


def test_a_quota_of_version_2_limits_the_cores(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "50000 100000\n"})

    assert machine.quota() == 0.5
    assert machine.cpus() == 0.5


def test_a_quota_of_version_1_limits_the_cores(tree: Tree) -> None:
    folder = "/cpu,cpuacct/app"
    machine = tree.v1("/app", {f"{folder}/cpu.cfs_quota_us": "25000\n", f"{folder}/cpu.cfs_period_us": "50000\n"})

    assert machine.quota() == 0.5
    assert machine.cpus() == 0.5


def test_the_tightest_quota_of_all_groups_above_holds(tree: Tree) -> None:
    machine = tree.v2(
        "/pod/app/worker",
        {
            "/pod/cpu.max": "30000 100000",
            "/pod/app/cpu.max": "80000 100000",
            "/pod/app/worker/cpu.max": "max 100000",
        },
    )

    assert machine.quota() == 0.3


def test_the_tightest_quota_of_version_1_may_be_on_an_ancestor(tree: Tree) -> None:
    top = "/cpu,cpuacct"
    machine = tree.v1(
        "/pod/app",
        {
            f"{top}/cpu.cfs_quota_us": "-1",
            f"{top}/pod/cpu.cfs_quota_us": "10000",
            f"{top}/pod/cpu.cfs_period_us": "100000",
            f"{top}/pod/app/cpu.cfs_quota_us": "-1",
            f"{top}/pod/app/cpu.cfs_period_us": "100000",
        },
    )

    assert machine.quota() == 0.1


@linux
@pytest.mark.parametrize("quota", ["max 100000", "max"])
def test_without_a_quota_all_processors_may_be_used(tree: Tree, quota: str) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": quota})

    assert machine.quota() is None
    assert machine.throttled_seconds() is None
    assert machine.cpus() == all_processors()


@linux
def test_a_quota_above_the_number_of_processors_limits_nothing(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "100000000 100000"})

    assert machine.cpus() == all_processors()


def test_a_quota_that_changes_is_followed(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "50000 100000"})
    before = machine.cpus()

    tree.write({f"{CGROUP}/app/cpu.max": "20000 100000"})

    assert (before, machine.cpus()) == (0.5, 0.2)


@linux
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_an_affinity_that_changes_is_followed() -> None:
    machine = Machine()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        pinned, busy = machine.cpus(), machine.busy()
    finally:
        os.sched_setaffinity(0, allowed)

    assert pinned <= 1.0
    assert busy is not None
    assert busy.processors == {min(allowed)}


@pytest.mark.parametrize("missing", [("process_cpu_count",), ("process_cpu_count", "sched_getaffinity")])
def test_a_platform_that_does_not_tell_affinities_counts_processors(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    tree.write({"/proc/stat": STAT})

    busy = tree.machine.busy()

    assert 1.0 <= tree.machine.cpus() <= (os.cpu_count() or 1)
    assert busy is not None


# --- Finding the group ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mounts"),
    [
        ("/", V2_MOUNT),
        ("/kubepods/pod1/abc", V2_MOUNT),
        ("/..", V2_MOUNT),
        ("/docker/abc/../..", V2_MOUNT.replace("0:26 /", "0:26 /docker/abc")),
        ("/docker/abc", V2_MOUNT.replace("0:26 /", "0:26 /docker/abc")),
        ("/docker/other", V2_MOUNT.replace("0:26 /", "0:26 /docker/abc")),
        ("/gone (deleted)", V2_MOUNT),
    ],
    ids=[
        "own namespace",
        "path of the host",
        "outside the namespace",
        "outside the mount",
        "bound",
        "bound elsewhere",
        "deleted",
    ],
)
def test_a_container_finds_its_group_at_the_mount(tree: Tree, path: str, mounts: str) -> None:
    machine = tree.v2(path, {"/cpu.max": "40000 100000", "/memory.max": "1000000"}, mounts=mounts)
    tree.write({"/sys/fs/cpu.max": "10000 100000"})  # no part of the tree

    assert machine.quota() == 0.4
    assert machine.memory_limit() == 1_000_000


def test_a_group_within_a_bound_mount_is_found_with_those_above(tree: Tree) -> None:
    mounts = V1_MOUNTS.replace(" / /sys", " /docker/abc /sys")
    machine = tree.v1(
        "/docker/abc/inner",
        {
            "/cpu,cpuacct/cpu.cfs_quota_us": "20000",
            "/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "/cpu,cpuacct/inner/cpu.cfs_quota_us": "90000",
            "/cpu,cpuacct/inner/cpu.cfs_period_us": "100000",
            "/memory/inner/memory.limit_in_bytes": "5000000",
        },
        mounts=mounts,
    )

    assert machine.quota() == 0.2
    assert machine.memory_limit() == 5_000_000


def test_of_two_mounts_the_one_that_shows_more_of_the_tree_is_used(tree: Tree) -> None:
    narrow = "29 24 0:26 /pod /bound rw - cgroup2 cgroup2 rw\n"
    machine = tree.v2("/pod/app", {"/pod/app/cpu.max": "max", "/pod/cpu.max": "max"}, mounts=narrow + V2_MOUNT)
    tree.write({"/bound/app/cpu.max": "10000 100000", f"{CGROUP}/cpu.max": "70000 100000"})

    assert machine.quota() == 0.7


def test_a_path_with_spaces_and_colons_is_found(tree: Tree) -> None:
    mounts = "30 24 0:26 / /control\\040groups rw - cgroup2 cgroup2 rw\n"
    machine = tree.v2("/a:b/c", {}, mounts=mounts)
    tree.write({"/control groups/a:b/c/cpu.max": "60000 100000"})

    assert machine.quota() == 0.6


def test_a_hybrid_tree_is_read_by_controller(tree: Tree) -> None:
    machine = tree.machine
    tree.write(
        {
            "/proc/self/cgroup": "2:cpu:/app\n1:cpuacct:/app\n0::/unit\n",
            "/proc/self/mountinfo": (
                "22 1 0:21 / /proc rw - proc proc rw\n"
                "35 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
                "36 30 0:31 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
                "37 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            ),
            f"{CGROUP}/cpu/app/cpu.cfs_quota_us": "50000",
            f"{CGROUP}/cpu/app/cpu.cfs_period_us": "100000",
            f"{CGROUP}/cpu/app/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n",
            f"{CGROUP}/cpuacct/app/cpuacct.usage": "2500000000",
            f"{CGROUP}/unified/unit/memory.max": "3000000",
            f"{CGROUP}/unified/unit/memory.stat": "anon 1000000\nfile 500\nshmem 100\n",
            f"{CGROUP}/unified/unit/cpu.pressure": "some avg10=12.50 avg60=0.00 avg300=0.00 total=4000000\n",
        }
    )

    assert machine.quota() == 0.5
    assert machine.cpu_seconds() == 2.5
    assert machine.throttled_seconds() == 1.5
    assert machine.memory() == Memory(3_000_000, 1_000_100)
    assert machine.psi("cpu") == 0.125


def test_groups_that_vanish_leave_what_is_seen_at_the_mount(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "20000 100000", "/app/memory.max": "1000", "/cpu.max": "90000 100000"})
    before = machine.quota()

    shutil.rmtree(tree.root / "sys/fs/cgroup/app")

    assert (before, machine.quota()) == (0.2, 0.9)
    assert machine.memory_limit() == 16 * GIB


def test_mounts_that_move_are_found_again(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "20000 100000"})
    before = machine.quota()

    shutil.rmtree(tree.root / "sys")
    tree.write({"/proc/self/mountinfo": V2_MOUNT.replace(CGROUP, "/moved"), "/moved/app/cpu.max": "30000 100000"})
    lost = machine.quota()

    assert (before, lost, machine.quota()) == (0.2, None, 0.3)


# --- CPU time ------------------------------------------------------------------------------------


def test_cpu_time_is_that_of_the_group_with_the_quota(tree: Tree) -> None:
    machine = tree.v2(
        "/pod/app",
        {
            "/pod/cpu.max": "50000 100000",
            "/pod/cpu.stat": "usage_usec 7500000\nuser_usec 1\nthrottled_usec 250000\n",
            "/pod/app/cpu.max": "max 100000",
            "/pod/app/cpu.stat": "usage_usec 1000000\nthrottled_usec 0\n",
        },
    )

    assert machine.cpu_seconds() == 7.5
    assert machine.throttled_seconds() == 0.25


def test_cpu_time_of_version_1_may_be_mounted_with_the_quota(tree: Tree) -> None:
    folder = "/cpu,cpuacct/app"
    machine = tree.v1(
        "/app",
        {
            f"{folder}/cpu.cfs_quota_us": "50000",
            f"{folder}/cpu.cfs_period_us": "100000",
            f"{folder}/cpuacct.usage": "1250000000",
        },
    )

    assert machine.cpu_seconds() == 1.25
    assert machine.throttled_seconds() is None


def test_cpu_time_mounted_apart_is_that_of_the_group_of_the_same_name(tree: Tree) -> None:
    mounts = (
        "35 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "36 30 0:31 / /sys/fs/cgroup/acct rw - cgroup cgroup rw,cpuacct\n"
    )
    machine = tree.v1(
        "/pod/app",
        {
            "/cpu/pod/cpu.cfs_quota_us": "50000",
            "/cpu/pod/cpu.cfs_period_us": "100000",
            "/cpu/pod/app/cpu.cfs_quota_us": "-1",
            "/acct/pod/cpuacct.usage": "3000000000",
            "/acct/pod/app/cpuacct.usage": "1000000000",
        },
        mounts=mounts,
    )

    assert machine.cpu_seconds() == 3.0


@pytest.mark.parametrize("usage", ["", "what\n"])
def test_without_the_groups_time_it_is_that_of_the_process(tree: Tree, usage: str) -> None:
    folder = "/cpu,cpuacct/app"
    machine = tree.v1(
        "/app",
        {
            f"{folder}/cpu.cfs_quota_us": "50000",
            f"{folder}/cpu.cfs_period_us": "100000",
            f"{folder}/cpuacct.usage": usage,
        },
    )
    before = time.process_time()

    assert machine.cpu_seconds() >= before


def test_a_group_without_accounting_has_no_time(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "50000 100000"})
    mounts = "35 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    other = Tree(tree.root / "other").v1(
        "/app", {"/cpu/app/cpu.cfs_quota_us": "5", "/cpu/app/cpu.cfs_period_us": "10"}, mounts=mounts
    )

    assert machine.read(0.0).quota_seconds is None
    assert other.read(0.0).quota_seconds is None
    assert other.read(0.0).quota == 0.5


def test_children_and_theirs_count_as_this_process(tree: Tree) -> None:
    stat = "({name}) S 1 1 1 0 -1 4194560 1 2 3 4 {ticks} {ticks} 0 {ticks} 20 0 1 0 100\n"
    tree.write(
        {
            "/proc/self/task/10/children": "20 ",
            "/proc/self/task/11/children": "21 22 \x00 what ",
            "/proc/20/stat": "20 " + stat.format(name="a (b) c 9 9", ticks=TICKS),
            "/proc/20/task/20/children": "30 20",
            "/proc/21/stat": "21 " + stat.format(name="plain", ticks=2 * TICKS),
            "/proc/30/stat": "30 " + stat.format(name="below", ticks=10 * TICKS),
        }
    )
    times = os.times()
    own = time.process_time() + times.children_user + times.children_system

    assert tree.machine.process_seconds() - own == pytest.approx(3 + 6 + 30, abs=0.1)


@linux
def test_a_real_child_counts_as_this_process_while_it_runs_and_after() -> None:
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('burnt', flush=True)\ninput()"
    machine = Machine()
    before = machine.process_seconds()

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = machine.process_seconds()
        child.communicate("\n")
    ended = machine.process_seconds()

    assert running - before >= 0.35
    assert ended - before >= 0.35


def test_busy_time_is_that_of_the_processors_that_may_be_used(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_second(pid: int) -> set[int]:
        return {1}

    tree.write({"/proc/stat": STAT})
    monkeypatch.setattr(os, "sched_getaffinity", only_the_second, raising=False)

    assert tree.machine.busy() == Busy(240 / TICKS, frozenset({1}))


def test_a_container_with_a_numbering_of_its_own_counts_all_it_is_shown(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(pid: int) -> set[int]:
        return {1, 7}

    tree.write({"/proc/stat": STAT})
    monkeypatch.setattr(os, "sched_getaffinity", others, raising=False)

    assert tree.machine.busy() == Busy((142 + 240) / TICKS, frozenset({0, 1}))


# --- Memory --------------------------------------------------------------------------------------


def test_the_memory_limit_of_version_2_may_be_on_an_ancestor(tree: Tree) -> None:
    machine = tree.v2(
        "/pod/app",
        {
            "/pod/memory.max": str(GIB),
            "/pod/memory.stat": "anon 300000000\nfile 600000000\nkernel 5\nshmem 50000000\n",
            "/pod/app/memory.max": "max",
            "/pod/app/memory.stat": "anon 1000\nshmem 0\n",
        },
    )

    assert machine.memory_limit() == GIB
    assert machine.memory_used() == 350_000_000


def test_a_limit_that_throttles_counts_as_one(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/memory.max": str(2 * GIB), "/app/memory.high": str(GIB)})

    assert machine.memory_limit() == GIB


def test_swap_of_version_2_is_no_memory(tree: Tree) -> None:
    machine = tree.v2(
        "/app",
        {
            "/app/memory.max": str(GIB),
            "/app/memory.swap.max": str(4 * GIB),
            "/app/memory.swap.current": str(3 * GIB),
            "/app/memory.stat": "anon 5\nswapcached 7\n",
        },
    )

    assert machine.memory() == Memory(GIB, 5)


@pytest.mark.parametrize("value", ["max", ""])
def test_without_a_limit_memory_is_that_of_the_machine(tree: Tree, value: str) -> None:
    machine = tree.v2("/app", {"/app/memory.max": value, "/app/memory.high": "max", "/app/memory.stat": "anon 5\n"})

    assert machine.memory() == Memory(16 * GIB, 4 * GIB)


def test_the_memory_limit_of_version_1_is_read_with_all_below_it(tree: Tree) -> None:
    machine = tree.v1(
        "/app",
        {
            "/memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "/memory/memory.use_hierarchy": "1",
            "/memory/app/memory.limit_in_bytes": str(GIB),
            "/memory/app/memory.usage_in_bytes": str(GIB - 1),
            "/memory/app/memory.stat": "cache 900\nrss 10\nshmem 1\ntotal_cache 9000\ntotal_rss 500\ntotal_shmem 20\n",
        },
    )

    assert machine.memory() == Memory(GIB, 520)


def test_the_huge_number_of_version_1_is_no_limit(tree: Tree) -> None:
    machine = tree.v1(
        "/app",
        {
            "/memory/app/memory.limit_in_bytes": NO_LIMIT_V1,
            "/memory/app/memory.memsw.limit_in_bytes": NO_LIMIT_V1,
            "/memory/app/memory.stat": f"rss 10\nhierarchical_memory_limit {NO_LIMIT_V1}\n",
        },
    )

    assert machine.memory() == Memory(16 * GIB, 4 * GIB)


def test_a_limit_of_version_1_that_includes_swap_is_no_addition(tree: Tree) -> None:
    machine = tree.v1(
        "/app",
        {
            "/memory/app/memory.limit_in_bytes": str(GIB),
            "/memory/app/memory.memsw.limit_in_bytes": str(3 * GIB),
            "/memory/app/memory.stat": "rss 10\nswap 99\n",
        },
    )

    assert machine.memory() == Memory(GIB, 10)


def test_a_limit_of_version_1_with_swap_alone_is_one_on_memory(tree: Tree) -> None:
    machine = tree.v1(
        "/app",
        {
            "/memory/app/memory.limit_in_bytes": NO_LIMIT_V1,
            "/memory/app/memory.memsw.limit_in_bytes": str(2 * GIB),
        },
    )

    assert machine.memory_limit() == 2 * GIB


@pytest.mark.parametrize(("limit", "swap"), [(GIB, NO_LIMIT_V1), (2 * GIB, GIB)])
def test_a_limit_of_version_1_above_what_the_container_sees_counts(tree: Tree, limit: int, swap: object) -> None:
    machine = tree.v1(
        "/docker/abc",
        {
            "/memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "/memory/memory.stat": f"total_rss 7\nhierarchical_memory_limit {limit}\nhierarchical_memsw_limit {swap}\n",
        },
        mounts=V1_MOUNTS.replace(" / /sys", " /docker/abc /sys"),
    )

    assert machine.memory() == Memory(GIB, 7)


@pytest.mark.parametrize(("hierarchical", "limit"), [("1", GIB), ("0", 2 * GIB)])
def test_an_ancestor_of_version_1_counts_if_it_is_hierarchical(tree: Tree, hierarchical: str, limit: int) -> None:
    machine = tree.v1(
        "/pod/app",
        {
            "/memory/pod/memory.limit_in_bytes": str(GIB),
            "/memory/pod/memory.use_hierarchy": hierarchical,
            "/memory/pod/app/memory.limit_in_bytes": str(2 * GIB),
            "/memory/pod/app/memory.use_hierarchy": "0",
        },
    )

    assert machine.memory_limit() == limit


def test_the_limit_that_leaves_the_least_is_the_one(tree: Tree) -> None:
    machine = tree.v2(
        "/pod/app",
        {
            "/pod/memory.max": str(4 * GIB),
            "/pod/memory.stat": f"anon {4 * GIB - 1000}\n",
            "/pod/app/memory.max": str(GIB),
            "/pod/app/memory.stat": "anon 5000\n",
        },
    )

    assert machine.memory() == Memory(4 * GIB, 4 * GIB - 1000)


def test_a_machine_with_less_than_the_group_may_use_is_the_limit(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/memory.max": str(15 * GIB), "/app/memory.stat": "anon 5\n"})

    assert machine.memory() == Memory(16 * GIB, 4 * GIB)


def test_a_machine_whose_total_is_unknown_has_no_limit_but_that_of_a_group(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    tree.write({"/proc/meminfo": ""})
    files = {"/memory/app/memory.limit_in_bytes": NO_LIMIT_V1, "/memory/app/memory.stat": "total_rss 7\n"}
    machine = tree.v1("/app", files)
    unlimited = machine.memory()

    tree.write({f"{CGROUP}/memory/app/memory.limit_in_bytes": "900"})

    assert unlimited is None
    assert machine.memory() == Memory(900, 7)


def test_an_old_kernel_that_does_not_tell_what_is_available_is_added_up(tree: Tree) -> None:
    tree.write({"/proc/meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 50 kB\nCached: 300 kB\nShmem: 20 kB\n"})

    assert tree.machine.memory() == Memory(1000 * 1024, 570 * 1024)


def test_a_machine_that_tells_only_its_total_has_an_unknown_use(tree: Tree) -> None:
    tree.write({"/proc/meminfo": "MemTotal: 1000 kB\n"})

    assert tree.machine.memory() == Memory(1000 * 1024, None)
    assert tree.machine.memory_used() is None


@pytest.mark.parametrize(
    ("status", "nbytes"),
    [("VmRSS: 300 kB\nRssAnon:\t     200 kB\nRssFile: 100 kB\n", 200 * 1024), ("VmRSS:\t 300 kB\n", 300 * 1024)],
)
def test_resident_memory_is_the_anonymous_part_where_it_is_told(tree: Tree, status: str, nbytes: int) -> None:
    tree.write({"/proc/self/status": "Name:\tpython 3\n" + status})

    assert tree.machine.rss() == nbytes


# --- Stalls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["cpu", "memory", "io"])
def test_stalls_are_those_of_the_own_group(tree: Tree, resource: str) -> None:
    full = "full avg10=1.00 avg60=1.00 avg300=1.00 total=9\n"
    machine = tree.v2(
        "/app", {f"/app/{resource}.pressure": f"some avg10=25.00 avg60=3.00 avg300=1.00 total=1500000\n{full}"}
    )
    tree.write({f"/proc/pressure/{resource}": f"some avg10=99.00 avg60=3.00 avg300=1.00 total=7\n{full}"})

    assert machine.psi(resource) == 0.25
    assert machine.stalled_seconds(resource) == 1.5


def test_stalls_are_those_of_the_machine_where_the_group_has_none(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": "max"})
    tree.write({"/proc/pressure/cpu": "some avg10=50.00 avg60=3.00 avg300=1.00 total=2000000\n"})

    assert machine.psi("cpu") == 0.5
    assert machine.stalled_seconds("cpu") == 2.0
    assert machine.psi("io") is None


def test_an_unknown_resource_is_refused(tree: Tree) -> None:
    with pytest.raises(ValueError, match=r"resource must be one of cpu, memory, io, not 'disk'"):
        tree.machine.psi("disk")


# --- What cannot be read -------------------------------------------------------------------------


GARBAGE: list[tuple[str, Callable[[Machine], object], object]] = [
    ("/sys/fs/cgroup/app/cpu.max", Machine.quota, None),
    ("/sys/fs/cgroup/app/memory.max", Machine.memory_limit, 16 * GIB),
    ("/sys/fs/cgroup/app/memory.stat", Machine.memory_used, None),
    ("/sys/fs/cgroup/app/cpu.stat", Machine.throttled_seconds, None),
    ("/proc/pressure/cpu", lambda machine: machine.psi("cpu"), None),
]


@pytest.mark.parametrize("junk", ["what is this\n", "-7 -8\n", "0x10 0\n", "9" * 50 + " 1\n", "é\x00\n"])
@pytest.mark.parametrize(("path", "ask", "expected"), GARBAGE, ids=[path for path, _, _ in GARBAGE])
def test_garbage_is_unknown_and_logged_once(
    tree: Tree,
    caplog: pytest.LogCaptureFixture,
    path: str,
    ask: Callable[[Machine], object],
    expected: object,
    junk: str,
) -> None:
    machine = tree.v2(
        "/app", {"/app/cpu.max": "50000 100000", "/app/memory.max": "1000000", "/app/memory.stat": "anon 1\n"}
    )
    tree.write({path: junk})
    caplog.set_level(logging.WARNING, "forebay")

    answers = [ask(machine), ask(machine)]

    assert answers == [expected, expected]
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [path]


@pytest.mark.parametrize("quota", ["0 100000", "50000 0", "50000"])
def test_a_quota_that_makes_no_sense_is_none(tree: Tree, quota: str) -> None:
    machine = tree.v2("/app", {"/app/cpu.max": quota})

    assert machine.quota() is None


def test_a_line_that_makes_no_sense_does_not_hide_the_others(tree: Tree) -> None:
    machine = tree.v2("/app", {"/app/memory.max": "900", "/app/memory.stat": "\x00\nanon 5 6\nanon 44\nshmem x\n"})
    tree.write({"/proc/stat": "cpu0 what\n" + STAT.splitlines()[2] + "\ncpux 1 2 3 4 5 6 7 8\n"})

    busy = machine.busy()

    assert machine.memory() == Memory(900, 44)
    assert busy is not None
    assert busy.processors == {1}


def test_a_file_that_may_not_be_read_is_unknown_and_logged_once(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    machine = tree.v2("/app", {"/app/memory.max/folder": ""})

    limits = [machine.memory_limit(), machine.memory_limit()]

    assert limits == [16 * GIB, 16 * GIB]
    assert len(caplog.records) == 1
    assert "'/sys/fs/cgroup/app/memory.max' cannot be read: " in caplog.text


def test_a_processor_that_is_not_listed_as_it_should_be_makes_all_unknown(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    tree.write({"/proc/stat": "cpu0 1 2\n"})

    assert tree.machine.busy() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_files_hold_a_reading_never_fails(tree: Tree, data: st.DataObject) -> None:
    bytes_of = st.one_of(
        st.binary(max_size=60),
        st.text("0123456789 -.:=/\nmaxcpumemorysomeavg10total", max_size=60).map(str.encode),
    )
    tree.v2("/app", {})
    for path in (
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        "/proc/self/status",
        "/proc/self/task/1/children",
        "/proc/stat",
        "/proc/meminfo",
        "/proc/pressure/cpu",
        f"{CGROUP}/app/cpu.max",
        f"{CGROUP}/app/cpu.stat",
        f"{CGROUP}/app/memory.max",
        f"{CGROUP}/app/memory.stat",
    ):
        tree.write({path: ""})
        if data.draw(st.booleans()):
            (tree.root / path.lstrip("/")).write_bytes(data.draw(bytes_of))

    reading = Machine(tree.root).read(1.0)

    assert reading.cpus > 0
    assert reading.memory_limit is None or reading.memory_limit >= 0


# --- Elsewhere -----------------------------------------------------------------------------------


def test_a_platform_without_proc_asks_psutil(tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    reading = machine.read(1.0, loop_lag=0.5)

    assert reading.cpus >= 1
    assert reading.process_seconds is not None
    assert reading.busy_seconds is not None
    assert reading.busy_seconds > 0
    assert reading.processors
    assert reading.memory_limit is not None
    assert reading.memory_used is not None
    assert 0 < reading.memory_used < reading.memory_limit
    assert reading.rss is not None
    assert reading.rss > 2**20
    assert reading.loop_lag == 0.5
    assert (reading.quota, reading.cpu_stalled_seconds) == (None, None)


def test_without_proc_the_children_are_found_by_psutil(tmp_path: Path) -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"
    machine = Machine(tmp_path)
    before = machine.process_seconds()

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = machine.process_seconds()
        child.communicate("\n")

    assert running - before >= 0.25


def test_a_child_that_ends_while_it_is_looked_at_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        handle = psutil.Process(child.pid)
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [handle])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]  # the race cannot be had at will

    assert Machine(tmp_path).process_seconds() > 0


def test_without_proc_and_psutil_all_is_unknown_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    machine = Machine(tmp_path)

    machine.read(1.0)
    reading = machine.read(2.0)

    assert reading == Reading(now=2.0, cpus=reading.cpus, process_seconds=reading.process_seconds)
    assert reading.process_seconds is not None
    assert machine.memory_limit() is None
    assert sorted(str(record.args[0]) for record in caplog.records if isinstance(record.args, tuple)) == [
        "busy elsewhere",
        "children elsewhere",
        "memory elsewhere",
        "rss elsewhere",
    ]


# --- The real machine ----------------------------------------------------------------------------


@linux
def test_the_readings_of_this_machine_make_sense() -> None:
    machine = Machine()

    first = machine.read(1.0)
    second = machine.read(2.0)

    assert 0 < first.cpus <= (os.cpu_count() or 1)
    assert first.process_seconds is not None
    assert second.process_seconds is not None
    assert second.process_seconds >= first.process_seconds > 0
    assert first.busy_seconds is not None
    assert first.busy_seconds > 0
    assert first.memory_limit is not None
    assert first.memory_used is not None
    assert 0 < first.memory_used < first.memory_limit
    assert machine.cpu_seconds() > 0


@linux
def test_memory_that_is_taken_shows_in_the_resident_memory() -> None:
    machine = Machine()
    before = machine.rss()

    held = bytearray(os.urandom(2**16) * 1024)
    after = machine.rss()

    assert before is not None
    assert after is not None
    assert after - before > 0.9 * len(held)


@pytest.fixture
def pinned() -> Iterator[int]:
    """Keep this thread on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    yield max(allowed)
    os.sched_setaffinity(0, allowed)


@linux
def test_a_hog_beside_us_on_the_real_machine_is_seen(pinned: int) -> None:
    hog = textwrap.dedent("""
        import os, sys, time
        if os.fork():
            os._exit(0)  # so that it is nobody's child
        print(os.getpid(), flush=True)
        os.close(1)
        while time.process_time() < 60: pass
    """)
    started = subprocess.run([sys.executable, "-c", hog], stdout=subprocess.PIPE, check=True)
    machine, gauge = Machine(), PressureGauge()

    try:
        while gauge.levels["cpu"] < 0.6:  # the suite's own limit ends it
            gauge.update(machine.read(time.monotonic()))
            time.sleep(0.25)
        reason = gauge.reason
    finally:
        os.kill(int(started.stdout), 9)

    assert "of the 1 cores that this process may run on" in reason
