"""What the host's part costs: the kernel log's parser, the poll of the counters, and fio through us against fio alone.

    python benchmarks/host.py log [LINES]
    python benchmarks/host.py watch [SECONDS]
    python benchmarks/host.py fio [RUNS] [FOLDER]

All figures are of the machine at hand. `fio` pairs its runs: one alone, one through us, in turn.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Catalogue, Site
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.probes.drives import storage
from pytest_gpuaccept.probes.drives.fio import Job
from pytest_gpuaccept.probes.kernel import events as kernel_events
from pytest_gpuaccept.probes.kernel import log as kernel_log
from pytest_gpuaccept.world import LiveWorld

BOOT = "0123abcd-0123-4bcd-8123-0123456789ab"
MESSAGES = (
    "usb 1-3: new high-speed USB device number 4 using xhci_hcd", "audit: type=1400 apparmor=ALLOWED operation=open",
    "pcieport 0000:c0:01.1: AER: Correctable error message received from 0000:c1:00.0",
    "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
    "NVRM: Xid (PCI:0000:c1:00): 31, pid=4711, name=python3", "docker0: port 1(veth12) entered forwarding state",
    "ixgbe 0000:42:00.0 eno1: NIC Link is Down", "perf: interrupt took too long (2503 > 2500), lowering",
    "EXT4-fs (nvme0n1p1): mounted filesystem with ordered data mode", "nvme nvme0: I/O 512 QID 7 timeout, aborting",
)  # fmt: skip
MIB = 2**20
WATCHED = 100
"""Counter files of four GPUs, their ports, a network and a drive."""


def log(lines: int) -> None:
    """Parse a journal of so many lines, two in five of them events, and print lines per second and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "journal"
        with file.open("w") as journal:
            journal.writelines(f"{_row(n)}\n" for n in range(lines))
        subprocess.run([sys.executable, __file__, "parse", str(file)], check=True)  # noqa: S603 - ourselves


def parse(file: str) -> None:
    """Parse a journal in a process of its own, whose memory holds nothing else."""
    text = Path(file).read_text()
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    began = time.perf_counter()
    parsed = kernel_log.parse_journal(text, BOOT)
    read = time.perf_counter()
    found = sum(1 for _ in kernel_events.events(parsed.records))
    novel = sum(kernel_events.novel(parsed.records).values())
    ended, lines = time.perf_counter(), len(parsed.records)
    peak = _peak_mib()
    _say(f"{lines:,} lines, {len(text) / MIB:.0f} MiB of JSON: {found:,} events, {novel:,} new warnings")
    _say(f"journal: {lines / (read - began):,.0f} lines/s; events, warnings: {lines / (ended - read):,.0f} lines/s")
    _say(f"both: {lines / (ended - began):,.0f} lines/s; peak {peak:.0f} MiB, {before:.0f} before the first line")


def _peak_mib() -> float:
    """Return the most memory that this process had since its peak was forgotten."""
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) / 1024


def _row(n: int) -> str:
    return json.dumps({
        "__CURSOR": f"s=0123;i={n:x}", "__REALTIME_TIMESTAMP": f"{1_700_000_000_000_000 + n}",
        "__MONOTONIC_TIMESTAMP": f"{n * 1000}", "_SOURCE_MONOTONIC_TIMESTAMP": f"{n * 1000}",
        "_BOOT_ID": BOOT.replace("-", ""), "_TRANSPORT": "kernel", "PRIORITY": f"{4 + n % 3}", "SYSLOG_FACILITY": "0",
        "MESSAGE": MESSAGES[n % len(MESSAGES)] if n else "Linux version 6.8.0",
    })  # fmt: skip


def poll(seconds: int) -> None:
    """Watch files of this machine's kernel at 1 Hz for a while, and print the CPU time that the child takes."""
    files = [*Path("/sys/class/net").glob("*/statistics/*"), *Path("/sys/block").glob("*/stat")][:WATCHED]
    job = {"files": dict.fromkeys(map(str, files), ""), "uuids": [], "period_s": 1.0}
    with LiveWorld().start("watch", job):
        child = next(p for p in psutil.Process().children(recursive=True) if "watch" in p.cmdline())
        time.sleep(2)
        first = child.cpu_times()
        time.sleep(seconds)
        last = child.cpu_times()
        rss = child.memory_info().rss / MIB
    used = last.user + last.system - first.user - first.system
    share = 100 * used / seconds
    _say(f"{len(files)} files at 1 Hz for {seconds} s: {used:.2f} s of CPU, {share:.2f} % of one, {rss:.0f} MiB")


def drive(runs: int, folder: str) -> None:
    """Run fio alone and through us in turn, on files of their own, and print the ratio of the bandwidths."""
    job = Job("seq_read", "read", 1024, 8, 1, 10)
    ours, alone = [], []
    for run in range(runs):
        for kind in ("alone", "ours") if run % 2 == 0 else ("ours", "alone"):
            (alone if kind == "alone" else ours).append(_alone(job, folder) if kind == "alone" else _ours(folder))
    ratios = [a / b for a, b in zip(ours, alone, strict=True)]
    _say(f"fio alone {statistics.median(alone):,.0f} MB/s, through us {statistics.median(ours):,.0f} MB/s")
    _say(f"ratio of {runs} pairs: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def _alone(job: Job, folder: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file, size = f"{place}/fio.dat", 2 * 2**30
        for one in (replace(job, name="layout", rw="write", seconds=0), replace(job, seconds=2), job):
            argv = one.argv(file, size, "io_uring")
            done = subprocess.run(argv, capture_output=True, text=True, check=True)  # noqa: S603 - our own command
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["bw_bytes"]) / 1e6


def _ours(folder: str) -> float:
    profile = load_profile("host", Catalogue(PROBES), SHIPPED)
    device = {name: facts.model_copy(update={"mount": folder}) for name, facts in profile.device.items()}
    profile = profile.model_copy(update={"device": device})
    params = {**storage.PARAMS, "size_gib": 2, "seconds": 10, "warmup_seconds": 2, "verify_gib": 1, "keep_free_gib": 5}
    site = Site(LiveWorld(), profile, next(iter(device)), params, lambda _name, _text: "")
    for outcome in storage.rates(site):
        if outcome.metric == "nvme.read.seq":
            if isinstance(outcome, Measurement):
                return float(outcome.value)
            raise SystemExit(outcome.reason)
    raise SystemExit(1)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Run what is asked for."""
    what, *more = [*sys.argv[1:], "", ""][:3]
    if what == "log":
        log(int(more[0] or 1_000_000))
    elif what == "parse":
        parse(more[0])
    elif what == "watch":
        poll(int(more[0] or 60))
    elif what == "fio":
        drive(int(more[0] or 5), more[1] or str(Path(os.getcwd())))  # noqa: PTH109 - a text for fio
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
