"""The CPUs' sensors: what they show under load, what they do not, and when a load is ended for their sake."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.burns import sensors as cpu_sensors
from pytest_gpuaccept.probes.burns.sensors import Sensors
from tests.stand_ins import Files

FUZZ = settings(deadline=None, database=None)
HWMON, CPUS, RAPL = "/sys/class/hwmon", "/sys/devices/system/cpu", "/sys/class/powercap"
AMD = {f"{HWMON}/hwmon3/name": "k10temp", f"{HWMON}/hwmon3/temp1_label": "Tctl", f"{HWMON}/hwmon3/temp1_input": "45125"}
DISK = {f"{HWMON}/hwmon0/name": "nvme", f"{HWMON}/hwmon0/temp1_label": "Tctl", f"{HWMON}/hwmon0/temp1_input": "99000"}
INTEL = {
    f"{HWMON}/hwmon1/{file}": text
    for file, text in {
        "name": "coretemp", "temp1_label": "Package id 0", "temp1_input": "61000", "temp1_crit": "100000",
        "temp2_label": "Core 0", "temp2_input": "94000", "temp2_crit": "100000",
    }.items()
}  # fmt: skip
SECOND = {path.replace("hwmon1", "hwmon2").replace("hwmon3", "hwmon4"): text for path, text in {**AMD, **INTEL}.items()}
READ_TCTL = f"{HWMON}/hwmon3/temp1_input"


@pytest.fixture
def machine(clock):
    """Make the sensors of a load on two CPUs of a machine of these files."""

    def make(*files, seconds=60):
        world = Files({path: text for part in files for path, text in part.items()}, clock)
        return world, Sensors(Site(world, None, "host", {}, None), seconds, [0, 1])

    return make


def burn(world, sensors, *readings, path=READ_TCTL, files=()):
    """Look once a second; each reading is what the file shows then, None for a file that is gone."""
    for reading in readings:
        world.clock.seconds += 1
        world.files.pop(path, None)
        world.files |= {path: reading} if reading is not None else {}
        world.files |= dict(files)
        sensors.look()


# heat ----------------------------------------------------------------------------------------------


def test_the_hottest_moment_counts(machine):
    """The highest of all looks, in C, and how many looks there were."""
    world, sensors = machine(AMD, DISK)
    burn(world, sensors, "70000", "81250", "79000")
    assert sensors.hottest() == (81.25, 3)


def test_the_hottest_package_counts(machine):
    """Every package has a thermometer; that of a core is none by which a processor throttles."""
    world, sensors = machine(INTEL, SECOND)
    burn(world, sensors, "72000", path=f"{HWMON}/hwmon2/temp1_input")
    assert [own.name for own in sensors.thermometers] == [
        "coretemp Package id 0",
        "coretemp Package id 0",
        "k10temp Tctl",
    ]
    assert sensors.hottest() == (72.0, 1)


def test_a_thermometer_without_labels_is_the_chips_first(machine):
    """Old processors have one thermometer, and give it no name."""
    unlabelled = {path: text for path, text in AMD.items() if "label" not in path}
    assert [own.path for own in machine(unlabelled)[1].thermometers] == [READ_TCTL]


@pytest.mark.parametrize("files", [{}, DISK, {f"{HWMON}/hwmon3/name": "k10temp"}])
def test_a_machine_without_a_cpu_thermometer_says_so(machine, files):
    """A virtual machine has none; the load goes on, and its temperature is no value."""
    world, sensors = machine(files)
    burn(world, sensors, *["1"] * 30, path="/elsewhere")
    with pytest.raises(Unmeasurable, match="no CPU thermometer in /sys/class/hwmon: load k10temp or coretemp"):
        sensors.hottest()


@pytest.mark.parametrize("dead", ["0", "-128000", "255000", "N/A", "", "9" * 30, None])
def test_a_package_that_shows_nothing_leaves_no_hottest(machine, dead):
    """The other package may be the cooler one; a defect reading is no temperature, and ends no load."""
    silent = f"{HWMON}/hwmon2/temp1_input"
    world, sensors = machine({**INTEL, **{p: t for p, t in SECOND.items() if "hwmon2" in p}, silent: dead or ""})
    burn(world, sensors, *[dead] * 30, path=silent)
    with pytest.raises(Unmeasurable, match=f"{silent} shows no temperature"):
        sensors.hottest()


def test_a_few_looks_that_saw_nothing_are_forgiven(machine):
    """Nine in ten must have seen a temperature for the highest to be one."""
    world, sensors = machine(AMD)
    burn(world, sensors, *["70000"] * 18, None, None)
    assert sensors.hottest() == (70.0, 18)
    burn(world, sensors, None)
    with pytest.raises(Unmeasurable, match="k10temp Tctl showed a temperature in 18 of 21 looks"):
        sensors.hottest()


def test_a_load_that_was_never_looked_at_has_no_temperature(machine):
    """No look is no reading of 0 C."""
    with pytest.raises(Unmeasurable, match="in 0 of 0 looks"):
        machine(AMD)[1].hottest()


@pytest.mark.parametrize(
    ("files", "path", "reading", "said"),
    [
        (AMD, READ_TCTL, "100000", "k10temp Tctl reached 100 C, and 100 C is where a burn is ended"),
        ({**AMD, f"{HWMON}/hwmon3/temp1_crit": "87000"}, READ_TCTL, "87000", "reached 87 C, and 87 C is where"),
        (INTEL, f"{HWMON}/hwmon1/temp1_input", "100000", "coretemp Package id 0 reached 100 C, and 100 C"),
        ({**INTEL, **SECOND}, f"{HWMON}/hwmon2/temp1_input", "100000", "coretemp Package id 0 reached 100 C"),
    ],
)
def test_a_cpu_that_is_too_hot_ends_the_load(machine, files, path, reading, said):
    """At 100 C, or where the sensor itself says critical, whichever is lower; any package will do."""
    world, sensors = machine(files)
    burn(world, sensors, f"{int(reading) - 1}", path=path)
    with pytest.raises(Unmeasurable, match=f"stopped: .*{said}"):
        burn(world, sensors, reading, path=path)
    assert sensors.looks[-1].degrees == int(reading) / 1000


def test_a_critical_temperature_that_is_none_is_passed_over(machine):
    """A sensor that calls 0 C critical ends no load at rest."""
    world, sensors = machine({**AMD, f"{HWMON}/hwmon3/temp1_crit": "0"})
    burn(world, sensors, "99000")
    with pytest.raises(Unmeasurable, match="reached 100 C"):
        burn(world, sensors, "100000")


def test_a_sensor_that_is_lost_ends_the_load(machine):
    """A thermometer that showed a temperature and shows none for ten seconds could be anything."""
    world, sensors = machine(AMD)
    burn(world, sensors, *["70000"] * 3, *[None] * 9, "70000", *["0"] * 9)
    with pytest.raises(Unmeasurable, match="stopped: k10temp Tctl has shown no temperature for 10 s"):
        burn(world, sensors, None)


def test_one_lost_sensor_of_two_ends_the_load(machine):
    """The package that is still seen says nothing of the other."""
    world, sensors = machine(INTEL, SECOND)
    with pytest.raises(Unmeasurable, match="stopped: coretemp Package id 0 has shown no temperature for 10 s"):
        burn(world, sensors, *[None] * 10, path=f"{HWMON}/hwmon2/temp1_input")


def test_it_looks_once_a_second(machine):
    """Whoever waits for the load asks more often; the sensors are read when it is time."""
    world, sensors = machine(AMD)
    for _ in range(20):
        world.clock.seconds += 0.25
        sensors.look()
    assert [look.t for look in sensors.looks] == [0.25, 1.25, 2.25, 3.25, 4.25]


# clocks --------------------------------------------------------------------------------------------


def cpufreq(*mhz):
    """Return what cpufreq shows of each CPU, None for one of which it shows nothing."""
    shown = {n: f"{own * 1000:.0f}" for n, own in enumerate(mhz) if own is not None}
    return {f"{CPUS}/cpu{n}/cpufreq/scaling_cur_freq": khz for n, khz in shown.items()}


def cpuinfo(*mhz, flags="fpu sse"):
    """Return /proc/cpuinfo with the clock of each CPU."""
    part = "processor\t: {}\nmodel name\t: AMD\ncpu MHz\t\t: {:.3f}\nflags\t\t: {}\n\n"
    return {"/proc/cpuinfo": "".join(part.format(n, own, flags) for n, own in enumerate(mhz))}


def watched(world, sensors, *looks):
    """Look once a second at these files; return what the slowest CPU is."""
    for files in looks:
        world.clock.seconds += 1
        world.files = {path: text for path, text in world.files.items() if "cpufreq" not in path} | files
        sensors.look()
    return sensors.slowest()


def test_the_slowest_cpu_is_the_one_with_the_lowest_median(machine):
    """One low reading is a moment, not a slow CPU."""
    world, sensors = machine(cpufreq(1500, 1500))
    fine, dip = cpufreq(3300, 3200), cpufreq(800, 3250)
    assert watched(world, sensors, *[fine] * 5, dip, *[fine] * 5) == (3200, 1, 10)
    assert sensors.clocks == "cpufreq"


def test_the_first_two_seconds_say_nothing_of_the_clocks(machine):
    """CPUs rise from rest."""
    world, sensors = machine(cpufreq(1500, 1500))
    rest = cpufreq(1500, 1500)
    assert watched(world, sensors, rest, *[cpufreq(3000, 3100)] * 3) == (3000, 0, 3)


def test_a_cpu_that_shows_no_clock_leaves_no_slowest(machine):
    """It may be the slowest."""
    world, sensors = machine(cpufreq(1500, 1500))
    with pytest.raises(Unmeasurable, match=r"cpu1 showed its clock in 0 of 9 looks under load \(cpufreq\)"):
        watched(world, sensors, *[cpufreq(3000, None)] * 10)


def test_a_clock_that_is_missed_once_in_ten_looks_is_forgiven(machine):
    """A reading that fails now and then costs nothing."""
    world, sensors = machine(cpufreq(1500, 1500))
    fine = cpufreq(3000, 3100)
    assert watched(world, sensors, fine, *[fine] * 9, cpufreq(3000, None)) == (3000, 0, 10)
    with pytest.raises(Unmeasurable, match="cpu1 showed its clock in 9 of 11 looks"):
        watched(world, sensors, cpufreq(3000, None))


def test_two_looks_are_no_clock(machine):
    """A load of a few seconds says nothing of a clock."""
    world, sensors = machine(cpufreq(1500, 1500))
    with pytest.raises(Unmeasurable, match="cpu0 showed its clock in 2 of 2 looks"):
        watched(world, sensors, *[cpufreq(3000, 3000)] * 3)


def test_without_cpufreq_the_clocks_stand_in_cpuinfo(machine):
    """The kernel shows them there as well, of a machine that is none of metal not at all."""
    world, sensors = machine(cpuinfo(2900, 2800))
    assert watched(world, sensors, *[cpuinfo(2900, 2800)] * 5) == (2800, 1, 4)
    assert sensors.clocks == "cpuinfo"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (cpuinfo(2596.1, 2596.1, flags="fpu hypervisor sse"), "a virtual machine does not show the clocks"),
        ({}, "neither cpufreq nor /proc/cpuinfo shows the clocks"),
        (cpufreq(0, 0), "neither cpufreq nor /proc/cpuinfo shows the clocks"),
        (cpufreq(99_000, 99_000), "neither cpufreq nor /proc/cpuinfo shows the clocks"),
    ],
    ids=["virtual", "nothing", "0 MHz", "99 GHz"],
)
def test_clocks_that_nobody_shows_are_named(machine, files, reason):
    """What a virtual machine shows is a number that somebody wrote down."""
    world, sensors = machine(files)
    with pytest.raises(Unmeasurable, match=reason):
        watched(world, sensors, *[files] * 9)


def test_a_long_load_is_looked_at_200_times(machine):
    """Reading the clocks of all CPUs costs time, so half an hour is not looked at every second."""
    world, sensors = machine(cpufreq(3000, 3000), seconds=1800)
    watched(world, sensors, *[cpufreq(3000, 3000)] * 1800)
    assert sum(bool(look.mhz) for look in sensors.looks) == 200


# what else is seen ---------------------------------------------------------------------------------


def throttled(*counts):
    """Return the throttle counters of each CPU and its package."""
    kinds = {"core_throttle_count": 1, "package_throttle_count": 2}
    return {
        f"{CPUS}/cpu{n}/thermal_throttle/{file}": f"{count * times}"
        for n, count in enumerate(counts) for file, times in kinds.items()
    }  # fmt: skip


def test_throttle_events_are_those_of_the_load(machine):
    """What was counted before it began is not its doing."""
    world, sensors = machine(throttled(5, 7))
    assert sensors.besides() == {"throttle_events": 0}
    world.files |= throttled(5, 9)
    assert sensors.besides() == {"throttle_events": 6}


def test_counters_that_are_not_there_are_no_zero(machine):
    """An AMD processor counts no throttle events; a counter that goes away counted none either."""
    assert machine(AMD)[1].besides() == {}
    world, sensors = machine(throttled(5, 7))
    world.files = {}
    assert sensors.besides() == {}


def energy(**zones):
    """Return energy counters in uJ, which begin anew at 1000 J."""
    return {
        f"{RAPL}/{zone.replace('_', ':')}/{file}": text
        for zone, value in zones.items()
        for file, text in {"energy_uj": f"{value}", "max_energy_range_uj": "999999999"}.items()
    }


def test_the_packages_power_is_the_mean_of_the_load(machine):
    """Energy of all packages over the time; a zone below a package is in it already."""
    world, sensors = machine(energy(**{"intel-rapl_0": 0, "intel-rapl_0_0": 0, "intel-rapl_1": 500}))
    world.clock.seconds = 10
    world.files |= energy(**{"intel-rapl_0": 400_000_000, "intel-rapl_0_0": 90_000_000, "intel-rapl_1": 100_000_500})
    assert sensors.besides() == {"package_w": 50.0}


def test_a_counter_that_begins_anew_many_times_is_counted_on(machine):
    """At 200 W the counter of a package comes round every five minutes; what is read at each look adds up."""
    world, sensors = machine(energy(**{"intel-rapl_0": 900_000_000}))
    for second in range(1, 61):
        world.clock.seconds = second
        world.files |= energy(**{"intel-rapl_0": (900_000_000 + second * 200_000_000) % 1_000_000_000})
        sensors.look()
    assert sensors.besides() == {"package_w": 200.0}


def test_energy_that_only_root_may_read_is_no_power(machine):
    """Nor is one that could be read at the beginning alone."""
    ranges = {path: text for path, text in energy(**{"intel-rapl_0": 1}).items() if "range" in path}
    assert machine(ranges)[1].besides() == {}
    world, sensors = machine(energy(**{"intel-rapl_0": 1}))
    world.clock.seconds, world.files = 10, {}
    sensors.look()
    world.files = energy(**{"intel-rapl_0": 5})
    assert sensors.besides() == {}


def test_the_looks_are_evidence(machine):
    """One line each: seconds, C, the lowest clock; what was not read is empty."""
    world, sensors = machine(AMD, cpufreq(3000, 2900))
    burn(world, sensors, "70500", None)
    world.files |= cpufreq(3100, None)
    sensors._clocks_due = 99
    burn(world, sensors, "71000")
    assert sensors.text() == "s,C,lowest MHz\n1.0,70.5,2900\n2.0,,2900\n3.0,71.0,\n"


# any text ------------------------------------------------------------------------------------------

TEXT = st.text() | st.integers(-(10**20), 10**20).map(str) | st.sampled_from(["NaN", "1e5", "0x10", "4294967295"])
PLACES = [
    *AMD,
    *INTEL,
    f"{HWMON}/hwmon3/temp1_crit",
    *cpufreq(1, 1),
    "/proc/cpuinfo",
    *throttled(1),
    *energy(**{"intel-rapl_0": 1}),
]


@FUZZ
@given(st.dictionaries(st.sampled_from(PLACES), TEXT), st.dictionaries(st.sampled_from(PLACES), TEXT))
def test_any_files_are_readings_or_none(before, after):
    """Whatever the files hold, a temperature and a clock are in their range, or not measured."""
    clock = SimpleNamespace(monotonic=lambda: clock.seconds, seconds=0.0)
    world = Files(before, clock)
    sensors = Sensors(Site(world, None, "host", {}, None), 60, [0, 1])
    world.files = after
    for read, low, high in ((sensors.hottest, 0, 100), (sensors.slowest, 0, 20_000)):
        with suppress(Unmeasurable):
            for clock.seconds in range(1, 6):
                sensors.look()
            assert low < read()[0] < high
    assert all(value >= 0 for key, value in sensors.besides().items() if key == "package_w")
    assert sensors.text().startswith("s,C,lowest MHz\n")


@FUZZ
@given(st.text() | st.lists(st.sampled_from(["processor\t: 0", "cpu MHz\t\t: 2900.000", "", "x"])).map("\n".join))
def test_any_cpuinfo_is_clocks_or_none(text):
    """Whatever stands in /proc/cpuinfo, a clock is one of the CPUs asked for."""
    shown = cpu_sensors.clocks(Site(Files({"/proc/cpuinfo": text}), None, "host", {}, None), "cpuinfo", [0, 1])
    assert shown.keys() <= {0, 1}
    assert all(0 < mhz < 20_000 for mhz in shown.values())
