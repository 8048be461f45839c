"""Functions that one system has and another lacks: what the machine does not say is done without, or asked for."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from datamodules.contract.engines import EngineConfig
from datamodules.prepare.prepare import prepare
from datamodules.prepare.relations import LogSize
from datamodules.prepare.shard_size import parallel_shards
from foundation.errors import UserError
from foundation.machine import available_cores, machine_memory
from train.distributed import World, require_devices


def test_a_system_without_a_list_of_cores(
    service: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no `os.sched_getaffinity`: all cores count, and shards are the same."""
    size = LogSize(impressions=10, plays=10, candidates=30, hours=pa.table({}))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == os.cpu_count()
    assert parallel_shards(size, 10_000, 2**40) == os.cpu_count()
    require_devices(1, World())
    manifest = prepare(service, tmp_path / "shards")
    assert manifest["impressions"] > 0
    for path in sorted((tmp_path / "shards" / "shard-00000").iterdir()):
        assert path.read_bytes() == (shards / "shard-00000" / path.name).read_bytes()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system keeps no list of a process's cores")
def test_cores_that_a_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("missing", ["sysconf", "names"])
def test_a_system_that_does_not_say_its_memory(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr("foundation.machine.CGROUP_LIMITS", ())
    assert (machine_memory() or 0) > 0
    if missing == "sysconf":
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf_names", {})

        def unknown(name: str) -> int:
            raise ValueError(f"unrecognized configuration name {name}")

        monkeypatch.setattr(os, "sysconf", unknown)
    assert machine_memory() is None
    assert EngineConfig(memory="2GB").bytes == 2_000_000_000
    with pytest.raises(UserError, match=r"this system does not say .* --memory 2GB"):
        EngineConfig()
