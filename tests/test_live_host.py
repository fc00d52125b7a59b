"""A real sign-off of the machine at hand, with real fio and stress-ng."""

import json
import os
import shutil
import sys

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.loader import SHIPPED

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
keep_free_gib = 1
[params."cpu.burn"]
seconds = 2
"""


@pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"not installed: {', '.join(MISSING)}")
def test_a_real_sign_off_agrees_with_fio_to_the_byte(pytester):
    """Real tools run, the evidence is whole, fio's own figure is ours, and no file is left behind."""
    mount = pytester.mkdir("scratch")
    pytester.mkdir("thresholds").joinpath("brief.toml").write_text(PROFILE.format(mount=mount))
    shutil.copytree(SHIPPED / "acceptance", pytester.path / "acceptance")
    result = pytester.run(sys.executable, "-m", "pytest", "acceptance", "--hw=brief", "--hw-evidence=ev")
    bundle = read_bundle(pytester.path / "ev")
    assert bundle.flaws == ()
    assert bundle.mode == "live"
    assert result.ret in (0, 1, 10)
    rates = [m for m in bundle.table().values() if m.metric.startswith("nvme.") and hasattr(m, "value")]
    assert rates, [str(v) for v in bundle.verdicts]
    for measured in rates:
        report = json.loads((bundle.folder / "attach" / measured.conditions["raw"]).read_text())
        half = report["jobs"][0]["read" if "read" in measured.metric else "write"]
        assert measured.conditions["bw_bytes"] == half["bw_bytes"]
        assert measured.value == (half["iops"] if measured.unit == "IOPS" else half["bw_bytes"] / 1e6)
    assert list(mount.iterdir()) == []
