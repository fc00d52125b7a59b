"""fio of the simulated machine: the probe runs on it unchanged, and catches every fault."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import cold_load, storage
from pytest_gpuaccept.probes.drives.fio import Job, parse_fio
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.sim import fio
from pytest_gpuaccept.sim.machine import Change, Machine, When
from pytest_gpuaccept.sim.parts import Cpu, Drive, Gpu, Host, LlamaCpp, Nic, Vllm
from pytest_gpuaccept.sim.world import SimClock, SimWorld

FUZZ = settings(deadline=None, database=None, max_examples=50)
GIB = 2**30
SIZE = 8 * GIB
MOUNT = "/mnt/nvme0"
PARAMS = {**storage.PARAMS, "size_gib": 8, "seconds": 10, "warmup_seconds": 1, "verify_gib": 1}
RATES = {"nvme.read.seq": 4589.0, "nvme.write.seq": 4213.0, "nvme.read.rand": 568e3, "nvme.write.rand": 555e3}
READS, WRITES = {"nvme.read.seq", "nvme.read.rand"}, {"nvme.write.seq", "nvme.write.rand"}


class World(SimWorld):
    """A simulated world around a machine that is made by hand."""

    def __init__(self, machine):
        self.machine, self.clock = machine, SimClock(machine)


def a_machine(**faults):
    """Return a machine of one GPU and one drive; `faults` are parameters of its drive."""
    machine = Machine(
        seed="7", cpu=Cpu(), host=Host(), gpus=[Gpu()], drives={"nvme0": Drive()}, nics={"nic0": Nic()},
        vllm=Vllm(), llamacpp=LlamaCpp(),
    )  # fmt: skip
    machine.mounts = {"/": "sda", MOUNT: "nvme0"}
    for name, value in faults.items():
        setattr(machine.drives["nvme0"], name, value)
    return machine


def the_site(machine, params, kept=None):
    """Return a probe's place in the world of a machine; attachments go to `kept`."""
    facts = {"nvme0": DeviceFacts(mount=MOUNT, pcie_gen=4, pcie_width=4)}
    profile = Profile(name="box", title="Box", devices={"nvme": ("nvme0",)}, device=facts, lines={})
    kept = {} if kept is None else kept
    return Site(World(machine), profile, "nvme0", params, lambda name, text: kept.setdefault(name, text) and name)


def the_rates(machine, **params):
    """Run the drive's probe unchanged; return its outcomes by metric."""
    return {o.metric: o for o in storage.rates(the_site(machine, PARAMS | params))}


def reasons(found):
    """Return the reasons of the rates that were not measured."""
    return {metric: found[metric].reason for metric in RATES if not isinstance(found[metric], Measurement)}


def ask(machine, *changes, rw="read", seconds=10):
    """Run one fio job, with options added or, by `-name`, taken away; return status, stdout and stderr."""
    argv = Job("job", rw, 1024, 8, 1, seconds).argv(f"{MOUNT}/f", SIZE, "io_uring")
    gone = tuple(f"--{word[1:]}" for word in changes if not word.startswith("--"))
    kept = [word for word in argv if word.partition("=")[0] not in gone]
    return fio.run(machine, [*kept, *(word for word in changes if word.startswith("--"))])


# fio ---------------------------------------------------------------------------------------------


def test_a_healthy_drive_gives_its_own_rates():
    """The probe measures, through every gate, what the drive's parameters say, within their noise."""
    found = the_rates(a_machine())
    assert {metric: found[metric].value for metric in RATES} == {
        metric: pytest.approx(rate, rel=0.05) for metric, rate in RATES.items()
    }
    conditions = [found[metric].conditions for metric in RATES]
    assert all(where["device_bytes"] == where["io_bytes"] for where in conditions)


def test_without_noise_a_rate_is_the_parameter():
    """A parameter of a drive is the rate that fio prints, to one block."""
    found = the_rates(a_machine(noise=0.0, read_mbs=3000.0, write_iops=100e3))
    assert found["nvme.read.seq"].value == pytest.approx(3000, rel=1e-3)
    assert found["nvme.write.rand"].value == pytest.approx(100e3, rel=1e-3)


def test_a_seed_decides_the_noise():
    """The same machine gives the same figures, and its jobs differ from the parameters."""
    first, second = the_rates(a_machine()), the_rates(a_machine())
    assert first == second
    assert first["nvme.read.seq"].value != pytest.approx(RATES["nvme.read.seq"], rel=1e-4)


@pytest.mark.parametrize(("rw", "seconds", "expected"), [("read", 10, 10.0), ("write", 0, SIZE / 4213e6)])
def test_a_job_takes_its_runtime_or_the_time_of_its_bytes(rw, seconds, expected):
    """Virtual time passes as it would on the drive, and the drive's counter grows by the bytes of the job."""
    machine = a_machine(noise=0.0)
    status, out, err = ask(machine, rw=rw, seconds=seconds)
    assert (status, err) == (0, "")
    assert machine.now == pytest.approx(expected)
    result = parse_fio(out, rw)
    assert machine.moved["nvme0"][rw] == result.io_bytes == (SIZE if rw == "write" else 4589 * 10**7 // 2**20 * 2**20)
    assert machine.running == []


@pytest.mark.parametrize(("size", "seconds"), [("4589m", 1.048576), ("64g", 10.0)])
def test_a_job_that_is_not_time_based_ends_with_its_file_or_its_runtime(size, seconds):
    """Whichever comes first ends it, as in fio."""
    machine = a_machine(noise=0.0)
    assert ask(machine, "-time_based", f"--size={size}")[0] == 0
    assert machine.now == pytest.approx(seconds)


@pytest.mark.parametrize(("iodepth", "numjobs"), [(8, 1), (32, 4)])
def test_the_latency_obeys_littles_law(iodepth, numjobs):
    """Requests in flight are the rate times the mean latency, and are those that were asked for."""
    _, out, _ = ask(a_machine(), f"--iodepth={iodepth}", f"--numjobs={numjobs}")
    result = parse_fio(out, "read")
    assert result.iops * result.latency_ns / 1e9 == pytest.approx(iodepth * numjobs, rel=1e-3)


def test_the_report_has_fios_form():
    """Version, stamps and options stand where the real report has them, options as the strings that were given."""
    machine = a_machine()
    machine.advance(60)
    report = json.loads(ask(machine)[1])
    assert report["fio version"] == "fio-3.33"
    assert (report["timestamp"], report["time"]) == (1767254470, "Thu Jan  1 08:01:10 2026")
    assert report["timestamp_ms"] // 1000 == report["timestamp"]
    [job] = report["jobs"]
    assert (job["jobname"], job["error"], job["elapsed"], job["job_runtime"]) == ("job", 0, 11, 10_000)
    assert job["job options"] == {
        "name": "job", "filename": f"{MOUNT}/f", "size": str(SIZE), "rw": "read", "bs": "1024k", "iodepth": "8",
        "numjobs": "1", "ioengine": "io_uring", "direct": "1", "randrepeat": "0", "invalidate": "1", "runtime": "10",
    }  # fmt: skip
    assert job["read"]["total_ios"] * 2**20 == job["read"]["io_bytes"]
    assert job["write"]["io_bytes"] == job["trim"]["io_bytes"] == 0


@pytest.mark.parametrize(
    ("faults", "spoilt", "gate"),
    [
        ({"page_cached": True}, READS, "a cache did the rest"),
        ({"interrupted": True}, READS | WRITES, "not evidence: ran 5000 ms of 10 s"),
        ({"read_mbs": 9000.0}, {"nvme.read.seq"}, "MB/s is more than a link of"),
        ({"read_iops": 0.0}, {"nvme.read.rand"}, "nothing was transferred"),
        ({"short_ios": 3}, READS | WRITES, "not evidence: 3 requests were cut short or dropped"),
    ],
    ids=["page cache", "interrupted", "beyond the link", "nothing", "short"],
)
def test_a_fault_of_a_drive_is_caught_by_its_gate(faults, spoilt, gate):
    """fio ends with status 0, and what it reports is still no evidence; the other rates are."""
    found = reasons(the_rates(a_machine(**faults)))
    assert found.keys() == spoilt
    assert all(gate in reason for reason in found.values())


def test_somebody_who_comes_in_the_midst_is_seen_in_every_job():
    """The drive was quiet before; what it reads besides fio's own is told of each job that follows."""
    machine = a_machine()
    machine.plan(Change(machine.drives["nvme0"], "foreign_busy", 0.2, When(from_s=6.0)))
    found = reasons(the_rates(machine))
    assert found.keys() == READS | WRITES
    assert all("somebody else moved" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("parameter", "value", "reason"),
    [("load_c", 200.0, "and is critical at 85 C: cool it"), ("free_gib", 5.0, "only 5.0 GiB are left")],
)
def test_what_endangers_the_machine_ends_the_test(parameter, value, reason):
    """Heat and a file system that fills up end the job in which they are seen and all that would follow."""
    machine = a_machine()
    machine.plan(Change(machine.drives["nvme0"], parameter, value, When(from_s=9.0)))
    found = reasons(the_rates(machine))
    assert found.keys() == READS | WRITES
    assert all(reason in told for told in found.values())


def test_data_that_read_back_wrong_are_found_by_verifying():
    """Rates do not show it; the job with checksums does."""
    found = the_rates(a_machine(corrupt=True))
    assert reasons(found) == {}
    assert found["nvme.verify.errors"].value.low == 1
    assert the_rates(a_machine())["nvme.verify.errors"].value == 0


def test_what_is_seen_meanwhile_is_the_drives():
    """Link, temperature, tail of the latency and the rate that is lost follow from the parameters."""
    found = the_rates(a_machine(noise=0.0, pcie_width=2, read_mbs=3000.0, write_mbs=3000.0, tail=3.0, cache_gib=20.0))
    assert (found["nvme.link.gen"].value, found["nvme.link.width"].value) == (4, 2)
    assert 38 < found["nvme.temperature"].value < 61
    assert found["nvme.read.latency_p99"].value == pytest.approx(0.98 * 3 * 128 / 568e3 * 1e6, rel=1e-3)
    assert found["nvme.drop"].value == pytest.approx(65, abs=5)


def the_load(machine):
    """Run the probe of the cold load unchanged; return its outcome."""
    [found] = cold_load.cold_load(the_site(machine, {**cold_load.PARAMS, "size_gib": 4}))
    return found


def test_a_cold_load_has_the_buffered_rate():
    """One process reads at its own rate, never faster than the drive; warm it comes from memory."""
    found = the_load(a_machine())
    assert (found.value, found.samples) == (pytest.approx(2.9, rel=0.05), 3)
    assert found.conditions["warm_gbs"] > 3 * found.value
    assert found.conditions["predicted_s"] == pytest.approx(140 / found.value, abs=0.1)
    assert the_load(a_machine(read_mbs=1000.0)).value == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"resident": 0.4}, r"40\.0% of the file was in memory before a cold read"),
        ({"page_cached": True}, r"100\.0% of the file was in memory before a cold read"),
        ({"error": 5}, "the drive does not answer"),
        ({"present": False}, "is not a folder"),
        ({"free_gib": 10.0}, r"has 10\.0 GiB free, the test needs 24\.0"),
        ({"foreign_busy": 0.5}, "somebody else uses the drive, 50 %"),
    ],
)
def test_a_load_that_is_not_cold_has_no_rate(faults, reason):
    """What stays in memory, and a drive that does not take the file, are told."""
    with pytest.raises(Unmeasurable, match=reason):
        the_load(a_machine(**faults))


def test_reads_from_memory_pass_what_the_link_carries():
    """A cached sequential read is told with both reasons: what the drive moved, and 37 GB/s."""
    reason = reasons(the_rates(a_machine(page_cached=True, noise=0.0)))["nvme.read.seq"]
    assert "37,000 MB/s is more than a link" in reason
    assert "the drive moved" in reason


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        (
            {"error": 5},
            f"fio: io_u error on file {MOUNT}/.gpuaccept-simulated/fio.dat: Input/output error: write offset=",
        ),
        ({"error": 28}, "No space left on device"),
        ({"error": 122}, "Disk quota exceeded"),
        ({"present": False}, f"mount of nvme0: {MOUNT} is not a folder"),
        ({"write_mbs": 0.0}, "fio was still running after 489"),
        ({"read_only": True}, f"{MOUNT} is mounted read-only"),
        ({"foreign_busy": 0.2}, "somebody else uses the drive, 20 % of the time before the test"),
        ({"free_gib": 28.0}, r"has 28\.0 GiB free, the test needs 29\.0"),
    ],
    ids=["EIO", "ENOSPC", "EDQUOT", "missing", "stuck", "read-only", "in use", "full"],
)
def test_a_drive_that_takes_no_file_gives_no_rate(faults, cause):
    """The layout already fails, with fio's own words, and nothing is measured."""
    with pytest.raises(Unmeasurable, match=cause):
        the_rates(a_machine(**faults))


def test_a_file_that_is_not_written_in_two_hours_is_cut_off():
    """A drive with hardly any rate does not let virtual time run for ever; fio then tells what it wrote."""
    machine = a_machine(noise=0.0, write_mbs=1.0)
    status, out, _ = ask(machine, rw="write", seconds=0)
    assert (status, machine.now) == (0, pytest.approx(7200))
    assert parse_fio(out, "write").io_bytes == pytest.approx(7.2e9, rel=1e-3)


@pytest.mark.parametrize(("fault", "errno"), [({"error": 84}, 84), ({"present": False}, 5)])
def test_a_drive_that_fails_later_fails_its_job(fault, errno):
    """A fault that comes in the midst of a job ends it there, with the errno and status 1."""
    machine = a_machine()
    [(parameter, value)] = fault.items()
    machine.plan(Change(machine.drives["nvme0"], parameter, value, When(from_s=4.0)))
    status, out, err = ask(machine)
    assert (status, parse_fio(out, "read").error) == (1, errno)
    assert out.startswith(f"fio: pid=4211, err={errno}/file:io_u.c:1876, func=io_u error, error=")
    assert len(err.splitlines()) == 8
    assert machine.now == pytest.approx(4.0, abs=0.2)


def test_the_cause_of_a_failed_job_is_the_reason_of_its_rate():
    """fio's line on stderr reaches the verdict; the other rates are measured."""
    machine = a_machine(noise=0.0)
    machine.plan(Change(machine.drives["nvme0"], "error", 5, When(from_s=9.5, on_s=0.05, off_s=1e6)))
    found = reasons(the_rates(machine))
    assert found.keys() == {"nvme.read.seq"}
    assert "status 1: fio: io_u error on file" in found["nvme.read.seq"]
    assert "Input/output error: read offset=" in found["nvme.read.seq"]


def test_a_full_cache_slows_the_writes_that_follow():
    """What was written since the start counts, whichever job wrote it; reads keep their rate."""
    found = the_rates(a_machine(noise=0.0, cache_gib=8.0, after_cache=0.25))
    assert found["nvme.write.seq"].value == pytest.approx(4213 / 4, rel=1e-3)
    assert found["nvme.write.rand"].value == pytest.approx(555e3 / 4, rel=1e-3)
    assert found["nvme.read.seq"].value == pytest.approx(4589, rel=1e-3)


def test_a_cache_that_fills_up_shows_in_the_midst_of_a_job():
    """A job that begins in the cache and ends behind it has a rate between the two."""
    rate = the_rates(a_machine(noise=0.0, cache_gib=35.0, after_cache=0.25))["nvme.write.seq"].value
    assert 4213 / 4 < 1.2 * rate < 4213


NO_SIZE = "fio: pid=0, err=22/file:filesetup.c:1155, func=total_file_size, error=Invalid argument\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("-name",), "No job(s) defined\n\n"),
        (("-size",), f"job: you need to specify size=\n{NO_SIZE}"),
        (("--size=abc",), "fio: failed parsing size=abc\n"),
        (("--size=",), "fio: option size requires an argument\n"),
        (("--iodepth=0",), "iodepth: min value out of range: 0 (1 min)\nfio: failed parsing iodepth=0\n"),
        (("--runtime=soon",), "fio: failed parsing runtime=soon\n"),
        (("--rw=bogus",), "fio: failed parsing rw=bogus\n"),
        (("--ioengine=nosuch",), "fio: engine nosuch not loadable\nfio: failed to load engine\n"),
        (("--ramp_time=5",), "fio: unrecognized option '--ramp_time=5'\n"),
        (("--filename=/mnt/other/f", "--thread"), "fio: failed to create dir (/): No such file or directory\n"),
    ],
)  # fmt: skip
def test_what_fio_does_not_run_is_refused_in_its_words(changes, words):
    """A command line that is wrong ends with status 1 at once; no time passes."""
    machine = a_machine()
    status, _, err = ask(machine, *changes)
    assert (status, err, machine.now) == (1, words, 0.0)


def test_what_was_not_asked_for_has_fios_default():
    """Without a block size and a depth, fio reads 4 KiB at a time, one request in flight."""
    machine = a_machine(noise=0.0, read_mbs=0.4096)
    _, out, _ = ask(machine, "-bs", "-iodepth", "-numjobs", "--size=1k", "--size=4m")
    result = parse_fio(out, "read")
    assert (result.iops, result.latency_ns) == (100.0, 1e7)


FIO_WORDS = st.sampled_from(["--name=x", "--size=4k", "--bs=8k", "--numjobs=2", "--rw=write", f"--filename={MOUNT}/f"])
FIO_OPTIONS = st.builds("--{}={}".format, st.sampled_from(sorted(fio.OPTIONS)), st.text())


@FUZZ
@given(words=st.lists(st.text() | FIO_WORDS | FIO_OPTIONS))
def test_any_command_line_of_fio_has_an_answer(words):
    """Whatever is asked, there is a status and a text, and no exception."""
    status, out, err = fio.run(a_machine(), ["fio", *words])
    assert status in {0, 1}
    assert out or err
