"""Reports that ttnn writes here and now, read as dumps."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import Environment

from ttmem.dumps import read_dump

pytestmark = [pytest.mark.ttnn, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("cluster", "mesh"), [("n150", ""), ("p150", ""), ("t3000", "1x8")])
def test_ttnns_reports_read_like_tt_metals_region(ttnn: Environment, tmp_path: Path, cluster: str, mesh: str) -> None:
    found = ttnn.run(tmp_path, cluster, "scenes.py", "report", mesh)
    devices = {device["device_id"]: device for device in read_dump(tmp_path / "database" / "db.sqlite").devices}
    assert sorted(devices) == sorted(map(int, found["regions"]))
    for chip, device in devices.items():
        theirs, memory = found["regions"][str(chip)], device["memory"]
        assert (memory["l1"]["used_bytes"], memory["dram"]["used_bytes"]) == (theirs["l1"], theirs["dram"])
        assert device["grid"] == found["grid"]
        assert device["arch"] == ("blackhole" if cluster == "p150" else "wormhole_b0")
        assert min(core["l1_lowest_address"] for core in device["cores"]) == found["lowest"]
        assert memory["cb"]["physical_bytes"] >= theirs["cb"] > 0, "the region lags"
    (table,) = tmp_path.glob("**/*detailed_memory_usage.csv")
    (report,) = read_dump(table).devices
    one = next(iter(devices.values()))
    assert report["memory"]["l1"]["total_bytes"] == one["memory"]["l1"]["total_bytes"]
    # Whole banks: never less than the buffers' own sizes.
    assert report["memory"]["l1"]["used_bytes"] >= one["memory"]["l1"]["used_bytes"] > 0
    assert sum(row["size_per_bank"] for row in report["buffers"] if row["buffer_type"] == "L1") > 0
