"""stress-ng of the simulated machine, and what its kernel shows meanwhile: the probes run on them unchanged."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import cpu, ram
from pytest_gpuaccept.probes.burns import stress as words
from pytest_gpuaccept.sim import stress
from pytest_gpuaccept.sim.machine import Change, When
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

FUZZ = settings(deadline=None, database=None, max_examples=50)
SECONDS = 30


@pytest.fixture
def world(profile):
    """A healthy simulated machine of the commissioned kind: 64 CPUs, eight modules of 64 GiB."""
    return SimWorld(profile, Scenario("healthy"))


@pytest.fixture
def machine(world):
    """Its machine; a test then changes a part of it."""
    return world.machine


@pytest.fixture
def probed(world, profile):
    """Run a probe unchanged on a machine whose CPU has these parameters; return its outcomes by metric."""

    def run(measure, **faults):
        vars(world.machine.cpu).update(faults)
        site = Site(world, profile, "host", {"seconds": SECONDS, "percent": 80}, lambda _name, text: text)
        return {outcome.metric.split(".")[-1]: outcome for outcome in measure(site)}

    return run


def unmeasured(found):
    """Return the reasons of what was not measured."""
    return {metric: o.reason for metric, o in found.items() if not isinstance(o, Measurement)}


# the burn of the CPUs ------------------------------------------------------------------------------


def test_a_healthy_burn_has_no_errors_and_the_proof(probed, machine):
    """Every gate passes: CPUs, workers, load average, thermometer, clocks; then the CPUs are idle again."""
    found = probed(cpu.burn)
    assert unmeasured(found) == {}
    assert found["load"].value == pytest.approx(99.8, abs=0.1)
    assert (found["errors"].value, found["errors"].proof.split(",")[0]) == (
        0, "64 workers verified their results for 30 s",
    )  # fmt: skip
    assert found["temperature"].value == pytest.approx(28 + 10 + 32, abs=1.5)
    assert found["frequency"].value == pytest.approx(3200, rel=0.01)
    assert machine.cpu_busy_s == pytest.approx(SECONDS)
    assert (machine.cpu_load, machine.running) == (0.0, [])


@pytest.mark.parametrize("count", [1, 3, 100])
def test_every_wrong_result_is_counted(probed, count):
    """A CPU that calculates wrongly has exactly as many errors as its parameter says."""
    assert probed(cpu.burn, wrong_results=count)["errors"].value == count


@pytest.mark.parametrize(
    ("faults", "spoilt", "reason"),
    [
        ({"burn_ends_after": 0.5}, {"errors", "load", "loadavg", "frequency"}, "says 15.0 s and took 15.0 s of 30 s"),
        ({"idle_cpus": 1}, {"errors"}, "the least busy one worked 0.0 % of the time"),
        ({"burn_missing": 1}, {"errors", "load", "loadavg", "frequency"}, "63 of 64 cpu workers of stress-ng ran"),
        ({"burn_killed": 1}, {"errors", "load", "loadavg", "frequency"}, "status 2, a worker failed"),
        ({"shared": 0.4}, {"errors", "load"}, "each worker had 60.0 % of a CPU"),
        ({"quota_cpus": 4}, {"errors", "load"}, "the time of 4 of 64 CPUs"),
        ({"rise_c": 75.0}, {"errors", "load", "loadavg", "frequency"}, "stopped: k10temp Tctl reached 100 C"),
        ({"thermometer": "lost"}, {"errors", "load", "loadavg", "frequency", "temperature"}, "no temperature for 10 s"),
    ],
)
def test_a_fault_of_the_burn_is_caught_by_its_gate(probed, faults, spoilt, reason):
    """Without a wrong result, and mostly with status 0: what was amiss is the reason."""
    found = unmeasured(probed(cpu.burn, **faults))
    assert found.keys() == spoilt
    assert reason in found["errors"]


def test_a_burn_that_was_ended_for_its_heat_was_at_least_that_hot(probed):
    """The temperature that ended it is measured, and stays open upwards."""
    value = probed(cpu.burn, rise_c=75.0)["temperature"].value
    assert isinstance(value, Interval)
    assert 100 <= value.low < 103


@pytest.mark.parametrize(
    ("faults", "metric", "value"),
    [
        ({"idle_cpus": 3}, "load", 0.0),
        ({"all_core_mhz": 2100.0}, "frequency", 2100.0),
        ({"rise_c": 54.0}, "temperature", 92.0),
    ],
)
def test_a_parameter_of_the_cpu_shows_in_its_metric(probed, faults, metric, value):
    """Idle CPUs, their clock under load and their heat are measured as they are."""
    assert probed(cpu.burn, **faults)[metric].value == pytest.approx(value, rel=0.03)


def test_a_machine_without_a_thermometer_has_no_temperature(probed):
    """Everything else is measured."""
    assert unmeasured(probed(cpu.burn, thermometer="none")).keys() == {"temperature"}


def test_an_intel_processor_has_a_thermometer_of_its_own(probed, machine):
    """Its driver has another name, and throttles by the package."""
    machine.cpu.model = "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert "coretemp Package id 0 reached" in unmeasured(probed(cpu.burn, rise_c=75.0))["errors"]


def test_offline_cpus_are_not_missed(probed, machine):
    """CPUs that are offline get no worker and are no idle ones."""
    assert probed(cpu.burn, offline=4)["load"].value == pytest.approx(99.8, abs=0.1)
    assert machine.cpu_busy_s == pytest.approx(SECONDS)


# the burn of the memory ----------------------------------------------------------------------------


def test_a_healthy_memory_burn_has_no_errors_and_the_proof(probed, machine):
    """The workers are seen to hold what they verify; then they hold nothing."""
    found = probed(ram.burn)
    assert unmeasured(found) == {}
    assert (found["errors"].value, found["errors"].conditions["workers"]) == (0, 64)
    assert found["coverage"].value == pytest.approx(0.8 * 98, abs=0.5)
    assert machine.held == []


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"memory_reached": 0.5}, "GiB that it was to touch"),
        ({"memory_idle": 1}, "63 of 64 workers held the memory"),
        ({"oom_kills": 2}, "OOM killer ended 2 processes"),
    ],
)
def test_a_fault_of_the_memory_burn_is_caught_by_its_gate(probed, faults, reason):
    """stress-ng ends with status 0 and says nothing."""
    assert reason in unmeasured(probed(ram.burn, **faults))["errors"]


def test_flipped_bits_are_counted(probed):
    """One line of each worker that found some."""
    assert probed(ram.burn, memory_wrong=3)["errors"].value == 3


def test_memory_that_somebody_holds_is_not_covered(probed):
    """What is not free is not asked for."""
    assert probed(ram.burn, memory_held=0.6)["coverage"].value == pytest.approx(32, abs=0.5)


def test_memory_that_somebody_takes_meanwhile_ends_the_burn(probed, machine):
    """Somebody who wants all of it while the burn holds most."""
    machine.plan(Change(machine.cpu, "memory_held", 1.0, When(from_s=10.0)))
    with pytest.raises(Unmeasurable, match=r"stopped: 0\.0 GiB of memory were left"):
        probed(ram.burn)


def test_the_bandwidth_is_that_of_the_modules(probed):
    """Reads and writes of all workers add up to their share of what eight channels carry."""
    found = probed(ram.bandwidth)["bandwidth"]
    assert found.value == pytest.approx(0.78 * 8 * 2666 * 8 / 1000, rel=1e-3)
    assert found.ceiling == pytest.approx(8 * 2666 * 8 / 1000)
    assert probed(ram.bandwidth, dimms=4)["bandwidth"].value == pytest.approx(found.value / 2, rel=1e-3)


# stress-ng itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "share"), [(16, 0.25), (0, 1.0), (128, 1.0)])
def test_workers_keep_as_many_cpus_busy(machine, workers, share):
    """Fewer workers than CPUs leave CPUs idle; 0 is one for each, and more are no more."""
    stress.run(machine, ["stress-ng", "--cpu", str(workers), "--timeout", "8s"])
    assert machine.cpu_busy_s == pytest.approx(8 * share)


def test_a_fault_that_comes_with_the_burn_counts_from_its_start(machine):
    """A CPU that drops out whenever stress-ng runs is idle all the time."""
    machine.plan(Change(machine.cpu, "idle_cpus", 32, When(during="stress-ng")))
    stress.run(machine, ["stress-ng", "--cpu", "64", "--timeout", "8s"])
    assert machine.cpu_busy_s == pytest.approx(4.0)


def test_without_verification_nothing_is_found_wrong(machine):
    """Only a worker that checks its results can say that one is wrong."""
    machine.cpu.wrong_results, machine.cpu.memory_wrong = 2, 2
    for stressor in ("--cpu", "--vm"):
        load = ["stress-ng", stressor, "2", "--timeout", "1s"]
        assert stress.run(machine, load)[0] == 0
        assert stress.run(machine, [*load, "--verify"])[0] == 2


SAID = """stress-ng: info:  [4300] setting to a 90 second (1 min, 30.00 secs) run per stressor
stress-ng: info:  [4300] dispatching hogs: 2 cpu
stress-ng: fail:  [4301] cpu: prime error detected, number of primes has been miscalculated
stress-ng: error: [4300] process [4301] (cpu) terminated with an error, exit status=2 (stressor failed)
stress-ng: metrc: [4300] stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s CPU used per       RSS Max
stress-ng: metrc: [4300]                           (secs)    (secs)    (secs)   (real time) (usr+sys time) instance (%)          (KB)
stress-ng: metrc: [4300] cpu              396000     90.00    180.00      0.00      4400.00        2200.00       100.00          6448
stress-ng: info:  [4300] unsuccessful run completed in 90.00s (1 min, 30.00 secs)
"""  # noqa: E501 - as printed


def test_what_is_said_has_stress_ngs_form(machine):
    """Lines and columns are those of the real one; stdout stays empty."""
    machine.cpu.wrong_results = 1
    argv = "stress-ng --cpu 2 --cpu-method all --verify --metrics --timeout 90s --yaml /t/r.yaml --temp-path /t"
    assert stress.run(machine, argv.split()) == (2, "", SAID)


STREAM = """stress-ng: info:  [4300] setting to a 5 second run per stressor
stress-ng: info:  [4300] dispatching hogs: 2 stream
stress-ng: info:  [4301] stream: stressor loosely based on a variant of the STREAM benchmark code
stress-ng: info:  [4301] stream: do NOT submit any of these results to the STREAM benchmark results
stress-ng: info:  [4301] stream: Using CPU cache size of 32768K
stress-ng: info:  [4301] stream: memory rate: 38076.42 MB read/sec, 25384.28 MB write/sec, 3327.17 Mflop/sec (instance 0)
stress-ng: info:  [4302] stream: memory rate: 38076.42 MB read/sec, 25384.28 MB write/sec, 3327.17 Mflop/sec (instance 1)
stress-ng: info:  [4300] successful run completed in 5.00s
"""  # noqa: E501 - as printed


def test_stream_tells_each_workers_rate(machine):
    """In the real one's words; a run that is too short says that instead."""
    argv = "stress-ng --stream 2 --stream-l3-size 32m --timeout"
    assert stress.run(machine, [*argv.split(), "5s"]) == (0, "", STREAM)
    assert (
        "[4301] stream: run duration too short to determine memory rate"
        in stress.run(machine, [*argv.split(), "4s"])[2]
    )


def test_the_report_is_written_where_it_was_asked_for(machine):
    """System and metrics stand in the YAML; without --metrics there are none, without --yaml no file."""
    machine.cpu.threads = 2
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
    ("argv", "said"),
    [
        ("--timeout 3s", f"{SETTING}stress-ng: error: [4300] No stress workers invoked\n"),
        ("--cpu x --timeout 1s", "Value x contains non-numeric: 'x'\n"),
        ("--cpu 2 --timeout zz", "Invalid number zz\n"),
        ("--vm 2 --vm-bytes lots", "Invalid number lots\n"),
        ("--cpu 2 --timeout", "stress-ng: option '--timeout' requires an argument\n"),
        ("--cpu 2 --matrix 4", "stress-ng: unrecognized option '--matrix'\n"),
    ],
)  # fmt: skip
def test_what_stress_ng_does_not_run_is_refused_in_its_words(machine, argv, said):
    """A command line that is wrong ends with status 1 at once; no time passes and nothing is written."""
    assert stress.run(machine, ["stress-ng", *argv.split()]) == (1, "", said)
    assert (machine.now, machine.written) == (0.0, {})


@pytest.mark.parametrize(
    ("asked", "spelt"), [("60s", ""), ("2m", " (2 mins, 0.00 secs)"), ("3661s", " (1 hour, 1 min, 1.00 secs)")]
)
def test_a_long_burn_is_spelt_out(machine, asked, spelt):
    """Durations beyond a minute are written in words, as the real one does."""
    machine.cpu.burn_ends_after = 0.0
    err = stress.run(machine, ["stress-ng", "--cpu", "2", "--timeout", asked])[2]
    assert err.splitlines()[0].partition(" second")[2] == f"{spelt} run per stressor"


KNOWN = ["--cpu", "--vm", "--stream", "--vm-bytes", "64m", "--timeout", "2", "1s", "--yaml", "--verify", "--metrics"]


@FUZZ
@given(argv=st.lists(st.text() | st.sampled_from(KNOWN)), killed=st.integers(0, 2), missing=st.integers(0, 3))
def test_any_command_line_of_stress_ng_has_an_answer(profile, argv, killed, missing):
    """Whatever is asked, there is a status and a text, and no exception; nothing of it is believed without a report."""
    machine = SimWorld(profile, Scenario("healthy")).machine
    machine.cpu.burn_ends_after, machine.cpu.burn_killed, machine.cpu.burn_missing = 0.0, killed, missing
    status, _, err = stress.run(machine, ["stress-ng", *argv])
    assert status in {0, 1, 2}
    assert err
    with suppress(Unmeasurable):
        words.work(Completed((), status, "", err, 1.0), "", 1, "cpu")
        pytest.fail("believed")
