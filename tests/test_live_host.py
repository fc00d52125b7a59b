"""A real sign-off of the machine at hand, with real fio and stress-ng."""

import json
import os
import shutil
import sys

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.measurement import Measurement

MISSING = [tool for tool in ("fio", "stress-ng") if shutil.which(tool) is None]
PROFILE = """
title = "this machine, briefly"
inherits = ["host"]
[device.disk0]
mount = "{mount}"
[params."nvme.fio"]
size_gib = 1
seconds = 1
warmup_seconds = 1
verify_gib = 1
keep_free_gib = 1
idle_seconds = 1
foreign_percent = 50
[params."cpu.burn"]
seconds = 2
[params."ram.burn"]
seconds = 2
percent = 5
[params."host.idle"]
seconds = 5
"""
RATES = ("nvme.read.seq", "nvme.write.seq", "nvme.read.rand", "nvme.write.rand")


def fio_says(bundle, measured):
    """Return what the report that a rate refers to says of it."""
    [job] = json.loads((bundle.folder / "attach" / measured.conditions["raw"]).read_text())["jobs"]
    half = job["read" if "read" in measured.metric else "write"]
    return (half["bw_bytes"], half["io_bytes"]), half["iops"] if measured.unit == "IOPS" else half["bw_bytes"] / 1e6


@pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"not installed: {', '.join(MISSING)}")
def test_a_real_sign_off_agrees_with_fio_to_the_byte(pytester):
    """Real tools run, the evidence is whole, fio's own figure is ours and the drive's, and no file is left behind."""
    mount = pytester.mkdir("scratch")
    pytester.mkdir("thresholds").joinpath("brief.toml").write_text(PROFILE.format(mount=mount))
    shutil.copytree(SHIPPED / "acceptance", pytester.path / "acceptance")
    result = pytester.run(sys.executable, "-m", "pytest", "acceptance", "--hw=brief", "--hw-evidence=ev")
    bundle = read_bundle(pytester.path / "ev")
    assert bundle.flaws == ()
    assert bundle.mode == "live"
    assert result.ret in (0, 1, 10)
    table = bundle.table()
    rates = [m for metric in RATES if isinstance(m := table[metric, "disk0"], Measurement)]
    assert rates, [str(v) for v in bundle.verdicts]
    for measured in rates:
        moved = measured.conditions["bw_bytes"], measured.conditions["io_bytes"]
        assert (moved, measured.value) == fio_says(bundle, measured)
        assert measured.conditions["device_bytes"] >= 0.95 * moved[1]
    assert table["nvme.verify.errors", "disk0"].value == 0
    assert list(mount.iterdir()) == []
