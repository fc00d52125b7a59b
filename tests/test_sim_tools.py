"""fio and stress-ng of the simulated machine: the probes run on them unchanged, and catch every fault."""

import json
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes import cpu, storage
from pytest_gpuaccept.probes.storage import Job, parse_fio
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.sim import fio, stress
from pytest_gpuaccept.sim.machine import Change, Machine, When
from pytest_gpuaccept.sim.parts import Cpu, Drive, Gpu, Host, LlamaCpp, Nic, Vllm
from pytest_gpuaccept.world import Completed, Disk

FUZZ = settings(deadline=None, database=None, max_examples=50)
GIB = 2**30
SIZE = 8 * GIB
MOUNT = "/mnt/nvme0"
PARAMS = {**storage.PARAMS, "size_gib": 8, "seconds": 10, "warmup_seconds": 1}
RATES = {"nvme.read.seq": 4589.0, "nvme.write.seq": 4213.0, "nvme.read.rand": 568e3, "nvme.write.rand": 555e3}
READS, WRITES = {"nvme.read.seq", "nvme.read.rand"}, {"nvme.write.seq", "nvme.write.rand"}
TOOLS = {"fio": fio.run, "stress-ng": stress.run}


class Clock:
    """The seconds of a machine."""

    def __init__(self, machine):
        self.machine = machine

    def monotonic(self):
        """Return the machine's time."""
        return self.machine.now


class World:
    """Just enough of a simulated world for a drive and the CPUs."""

    def __init__(self, machine):
        self.machine, self.clock = machine, Clock(machine)

    def command(self, argv, *, timeout, watch=None):
        """Run a tool in virtual time."""
        began = self.machine.now
        status, out, err = TOOLS[argv[0]](self.machine, argv)
        seconds = self.machine.now - began
        if seconds > timeout:
            message = f"{argv[0]} was still running after {timeout:g} s and was ended"
            raise Unmeasurable(message)
        return Completed(tuple(argv), status, out, err, seconds)

    def read(self, path):
        """Answer from what was written, or from the state of the machine."""
        files = {
            "/sys/devices/system/cpu/online": lambda: f"0-{self.machine.cpu.threads - self.machine.cpu.offline - 1}",
            "/sys/dev/block/259:1/stat": self._sectors,
            "/proc/stat": self._ticks,
            "/proc/loadavg": lambda: "63.90 40.11 20.20 65/900 4300",
        }
        if path in self.machine.written:
            return self.machine.written[path].strip()
        if path not in files:
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return files[path]()

    def _sectors(self):
        moved = self.machine.moved["nvme0"]
        return f"9 0 {moved['read'] // 512} 7 9 0 {moved['write'] // 512} 7 0 5 5"

    def _ticks(self):
        part = self.machine.cpu
        online = part.threads - part.offline
        busy = self.machine.cpu_busy_s * online / max(1, online - part.idle_cpus)
        lines = []
        for index in range(online):
            worked = 0 if index < part.idle_cpus else round(100 * busy)
            lines.append(f"cpu{index} {worked} 0 0 {round(100 * self.machine.now) - worked} 0 0 0 0 0 0")
        return "\n".join(lines)

    def names(self, path):
        """List the one block device."""
        assert path == "/sys/dev/block/259:1"
        return ["stat"]

    def disk(self, path):
        """Return the drive behind the mount."""
        return Disk("259:1", 1000 * GIB)

    @contextmanager
    def folder(self, parent=None):
        """Name a folder."""
        yield f"{parent or '/tmp'}/.gpuaccept-1"


def a_machine(**faults):
    """Return a machine of one GPU and one drive; `faults` are parameters of its drive and its CPU."""
    machine = Machine(
        seed="7", cpu=Cpu(), host=Host(), gpus=[Gpu()], drives={"nvme0": Drive()}, nics={"nic0": Nic()},
        vllm=Vllm(), llamacpp=LlamaCpp(),
    )  # fmt: skip
    machine.mounts = {"/": "sda", MOUNT: "nvme0"}
    for name, value in faults.items():
        setattr(machine.drives["nvme0"] if name in Drive.model_fields else machine.cpu, name, value)
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


def the_burn(machine):
    """Run the CPU's probe unchanged; return its measurements by metric."""
    return {m.metric: m for m in cpu.burn(the_site(machine, {"seconds": 30}))}


def reasons(found):
    """Return the reasons of what was not measured."""
    return {metric: o.reason for metric, o in found.items() if not isinstance(o, Measurement)}


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
    assert {metric: m.value for metric, m in found.items()} == {
        metric: pytest.approx(rate, rel=0.05) for metric, rate in RATES.items()
    }
    assert all(m.conditions["device_bytes"] == m.conditions["io_bytes"] for m in found.values())


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
    ],
    ids=["page cache", "interrupted", "beyond the link", "nothing"],
)
def test_a_fault_of_a_drive_is_caught_by_its_gate(faults, spoilt, gate):
    """fio ends with status 0, and what it reports is still no evidence; the other rates are."""
    found = reasons(the_rates(a_machine(**faults)))
    assert found.keys() == spoilt
    assert all(gate in reason for reason in found.values())


def test_reads_from_memory_pass_what_the_link_carries():
    """A cached sequential read is told with both reasons: what the drive moved, and 37 GB/s."""
    reason = reasons(the_rates(a_machine(page_cached=True, noise=0.0)))["nvme.read.seq"]
    assert "37,000 MB/s is more than a link" in reason
    assert "the drive moved" in reason


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        ({"error": 5}, f"fio: io_u error on file {MOUNT}/.gpuaccept-1/fio.dat: Input/output error: write offset="),
        ({"error": 28}, "No space left on device"),
        ({"present": False}, f"fio: failed to create dir \\({MOUNT}\\): No such file or directory"),
        ({"write_mbs": 0.0}, "fio was still running after 489"),
    ],
    ids=["EIO", "ENOSPC", "missing", "stuck"],
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
    machine.plan(Change(machine.drives["nvme0"], "error", 5, When(from_s=3.5, on_s=0.05, off_s=1e6)))
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


# stress-ng ---------------------------------------------------------------------------------------


def test_a_healthy_burn_has_no_errors_and_the_proof():
    """The probe finds every CPU busy and no wrong result; time has passed, and the CPUs are idle again."""
    machine = a_machine()
    found = the_burn(machine)
    assert found["cpu.burn.load"].value == pytest.approx(100.0)
    assert found["cpu.burn.errors"].value == 0
    assert (
        found["cpu.burn.errors"].proof == "64 workers verified their results for 30 s, every CPU at least 100.0 % busy"
    )
    assert (machine.now, machine.cpu_busy_s) == (pytest.approx(30.0), pytest.approx(30.0))
    assert (machine.cpu_load, machine.running) == (0.0, [])


def test_an_idle_cpu_is_found_and_takes_the_proof_away():
    """stress-ng says nothing of a CPU that it does not reach; /proc/stat does."""
    machine = a_machine(idle_cpus=1)
    found = the_burn(machine)
    assert found["cpu.burn.load"].value == 0.0
    assert found["cpu.burn.errors"].proof is None
    assert machine.cpu_busy_s == pytest.approx(30.0 * 63 / 64)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_every_wrong_result_is_counted(count):
    """A CPU that calculates wrongly has exactly as many errors as its parameter says."""
    assert the_burn(a_machine(wrong_results=count))["cpu.burn.errors"].value == count


def test_a_burn_that_ends_early_is_no_burn():
    """stress-ng ends with status 0 after half the time, and the gate on time catches it."""
    with pytest.raises(Unmeasurable, match=r"stress-ng says 15\.0 s and took 15\.0 s of 30 s, \d+ operations"):
        the_burn(a_machine(burn_ends_after=0.5))


def test_offline_cpus_are_not_missed():
    """CPUs that are offline get no worker and are no idle ones."""
    machine = a_machine(offline=4)
    assert the_burn(machine)["cpu.burn.load"].value == pytest.approx(100.0)
    assert machine.cpu_busy_s == pytest.approx(30.0)


@pytest.mark.parametrize(("workers", "share"), [(16, 0.25), (0, 1.0), (128, 1.0)])
def test_workers_keep_as_many_cpus_busy(workers, share):
    """Fewer workers than CPUs leave CPUs idle; 0 is one for each, and more are no more."""
    machine = a_machine()
    stress.run(machine, ["stress-ng", "--cpu", str(workers), "--timeout", "8s"])
    assert machine.cpu_busy_s == pytest.approx(8 * share)


def test_a_fault_that_comes_with_the_burn_counts_from_its_start():
    """A CPU that drops out whenever stress-ng runs is idle all the time."""
    machine = a_machine()
    machine.plan(Change(machine.cpu, "idle_cpus", 32, When(during="stress-ng")))
    stress.run(machine, ["stress-ng", "--cpu", "64", "--timeout", "8s"])
    assert machine.cpu_busy_s == pytest.approx(4.0)


def test_without_verification_nothing_is_found_wrong():
    """Only a worker that checks its results can say that one is wrong."""
    burn = ["stress-ng", "--cpu", "2", "--timeout", "1s"]
    assert stress.run(a_machine(wrong_results=2), burn)[0] == 0
    assert stress.run(a_machine(wrong_results=2), [*burn, "--verify"])[0] == 2


SAID = """stress-ng: info:  [4300] setting to a 90 second (1 min, 30.00 secs) run per stressor
stress-ng: info:  [4300] dispatching hogs: 2 cpu
stress-ng: fail:  [4301] cpu: prime error detected, number of primes has been miscalculated
stress-ng: error: [4300] process [4301] (cpu) terminated with an error, exit status=2 (stressor failed)
stress-ng: metrc: [4300] stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s CPU used per       RSS Max
stress-ng: metrc: [4300]                           (secs)    (secs)    (secs)   (real time) (usr+sys time) instance (%)          (KB)
stress-ng: metrc: [4300] cpu              396000     90.00    180.00      0.00      4400.00        2200.00       100.00          6448
stress-ng: info:  [4300] unsuccessful run completed in 90.00s (1 min, 30.00 secs)
"""  # noqa: E501 - as printed


def test_what_is_said_has_stress_ngs_form():
    """Lines and columns are those of the real one; stdout stays empty."""
    words = "stress-ng --cpu 2 --cpu-method all --verify --metrics --timeout 90s --yaml /t/r.yaml --temp-path /t"
    assert stress.run(a_machine(wrong_results=1), words.split()) == (2, "", SAID)


def test_the_report_is_written_where_it_was_asked_for():
    """System and metrics stand in the YAML; without --metrics there are none, without --yaml no file."""
    machine = a_machine(threads=2)
    burn = ["stress-ng", "--cpu", "2", "--timeout", "3s"]
    stress.run(machine, burn)
    assert machine.written == {}
    stress.run(machine, [*burn, "--yaml", "/t/bare"])
    stress.run(machine, [*burn, "--yaml", "/t/full", "--metrics"])
    assert "metrics:" not in machine.written["/t/bare"]
    lines = machine.written["/t/full"].splitlines()
    assert lines[:3] == ["---", "system-info:", "      stress-ng-version: 0.15.06"]
    assert {"      cpus-online: 2", "    - stressor: cpu", "      bogo-ops: 13200",
            "      wall-clock-time: 3.000000"} <= set(lines)  # fmt: skip
    assert lines[-1] == "..."


SETTING = "stress-ng: info:  [4300] setting to a 3 second run per stressor\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--timeout 3s", f"{SETTING}stress-ng: error: [4300] No stress workers invoked\n"),
        ("--cpu x --timeout 1s", "Value x contains non-numeric: 'x'\n"),
        ("--cpu 2 --timeout zz", "Invalid number zz\n"),
        ("--cpu 2 --timeout", "stress-ng: option '--timeout' requires an argument\n"),
        ("--cpu 2 --matrix 4", "stress-ng: unrecognized option '--matrix'\n"),
    ],
)  # fmt: skip
def test_what_stress_ng_does_not_run_is_refused_in_its_words(words, said):
    """A command line that is wrong ends with status 1 at once; no time passes and nothing is written."""
    machine = a_machine()
    assert stress.run(machine, ["stress-ng", *words.split()]) == (1, "", said)
    assert (machine.now, machine.written) == (0.0, {})


@pytest.mark.parametrize(
    ("asked", "spelt"), [("60s", ""), ("2m", " (2 mins, 0.00 secs)"), ("3661s", " (1 hour, 1 min, 1.00 secs)")]
)
def test_a_long_burn_is_spelt_out(asked, spelt):
    """Durations beyond a minute are written in words, as the real one does."""
    err = stress.run(a_machine(burn_ends_after=0.0), ["stress-ng", "--cpu", "2", "--timeout", asked])[2]
    assert err.splitlines()[0].partition(" second")[2] == f"{spelt} run per stressor"


@FUZZ
@given(
    words=st.lists(st.text() | st.sampled_from(["--cpu", "--timeout", "2", "1s", "--yaml", "--verify", "--metrics"]))
)
def test_any_command_line_of_stress_ng_has_an_answer(words):
    """Whatever is asked, there is a status and a text, and no exception."""
    status, _, err = stress.run(a_machine(burn_ends_after=0.0), ["stress-ng", *words])
    assert status in {0, 1}
    assert err
    with suppress(Unmeasurable):
        cpu.count_failures(Completed((), status, "", err, 1.0), "", 1)
