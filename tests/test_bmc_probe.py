"""The board's controller: what it logged in the run, which sensors are critical, when its silence proves nothing."""

import re
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Interval, Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import bmc, electrical
from pytest_gpuaccept.readings import decode, encode
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

FUZZ = settings(deadline=None, database=None)
INFO = """SEL Information
Version          : 1.5 (v1.5, v2 compliant)
Entries          : {entries}
Free Space       : {free} bytes
Last Add Time    : 11/23/2025 09:00:00
Overflow         : {overflow}
Supported Cmds   : 'Delete' 'Reserve'
"""
OLD = "   1 |  Pre-Init  |0000001708| Power Supply PSU1 Status | Presence detected | Asserted"
FAN = "   2 | 01/01/2026 | 08:00:01 UTC | Fan FAN1 | Lower Critical going low  | Asserted | Reading 200 < 300 RPM"
ECC = "  1a | 01/01/2026 | 08:00:02 UTC | Memory #0x53 | Correctable ECC | Asserted"
SENSORS = {
    "CPU1 Temp": ("31h", "ok", "3.1", "45 degrees C"), "FAN1": ("41h", "ok", "29.1", "1500 RPM"),
    "FAN5": ("45h", "ns", "29.5", "No Reading"), "PSU1 Status": ("C4h", "ok", "10.1", "Presence detected"),
    "3VSB": ("03h", "unc", "7.1", "3.42 Volts"), "Chassis": ("AAh", "ok", "23.1", ""),
}  # fmt: skip


@pytest.fixture
def site(profile):
    """Return the site of a healthy machine with the reading of its start."""
    world = SimWorld(profile, Scenario("healthy"))
    made = Site(world, profile, "host", {}, lambda name, text: "digest")
    return replace(made, before=bmc.start(made))


def look(site):
    """Return the outcomes by metric."""
    return {outcome.metric: outcome for outcome in bmc.controller(site)}


def elist(**changed):
    """Return what ipmitool prints of the sensors, some changed to (status, reading); None takes one away."""
    lines = []
    for name, (number, status, entity, reading) in SENSORS.items():
        if now := changed.get(name.replace(" ", "_"), (status, reading)):
            lines.append(f"{name:<16} | {number} | {now[0]:<3} | {entity:>4} | {now[1]}\n")
    return "".join(lines)


@pytest.fixture
def printing(site, monkeypatch):
    """Let ipmitool print something: {words: text, or (status, stdout, stderr)}."""
    answers = {}

    def command(argv, *, timeout, watch=None):
        said = answers[" ".join(argv[1:])]
        return Completed(tuple(argv), *((0, said, "") if isinstance(said, str) else said), 0.1)

    monkeypatch.setattr(site.world, "command", command)
    answers |= {"sel info": info(), "sel elist": f"{OLD}\n", "sdr elist": elist()}
    return answers


def info(entries=1, free=9000, overflow="false"):
    """Return what ipmitool says of the log."""
    return INFO.format(entries=entries, free=free, overflow=overflow)


def at_start(site):
    """Return the site with what the controller prints now as its start."""
    return replace(site, before=bmc.start(site))


# whole ---------------------------------------------------------------------------------------


def test_a_healthy_board_has_nothing_to_tell(site):
    """No new entry, no critical sensor, and what proves both."""
    found = look(site)
    assert {metric: outcome.value for metric, outcome in found.items()} == {"bmc.events": 0, "bmc.sensors": 0}
    assert "both ends" in found["bmc.events"].proof
    assert found["bmc.sensors"].proof == "5 of 5 sensors read"


def test_a_board_without_a_controller_measures_nothing(site):
    """The tool's own words, in one line, and what it takes."""
    site.world.machine.host.bmc = False
    for outcome in look(site).values():
        assert isinstance(outcome, NotMeasured)
        assert "/dev/ipmi0" in outcome.reason
        assert outcome.reason.endswith("and a board with a BMC")
        assert "\n" not in outcome.reason


@pytest.mark.parametrize("before", [None, Unmeasurable("ipmitool sel ended with status 1")])
def test_without_the_start_no_entry_is_new_and_sensors_count_all_the_same(site, before):
    """What came in the run is unknown then; what is critical now is critical."""
    found = look(replace(site, before=before))
    assert "start of the run" in found["bmc.events"].reason
    assert found["bmc.sensors"].value == 0
    assert "not known" in found["bmc.sensors"].note


def test_the_start_outlives_the_process(site, printing):
    """A run that is resumed compares with the start that was written down, readings and reasons."""
    printing["sel info"] = (1, "", "no device\n")
    started = bmc.start(site)
    again = decode(encode(started), bmc.start)
    assert again.sensors == started.sensors
    assert str(again.log) == str(started.log)


# event log -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "value", "said"),
    [
        ([OLD], 0, ""),
        ([OLD, FAN], 1, "2 | 01/01/2026 | 08:00:01 UTC | Fan FAN1 | Lower Critical going low | Asserted"),
        ([OLD, FAN, ECC], 2, "; 1a | 01/01/2026 | 08:00:02 UTC | Memory #0x53 | Correctable ECC | Asserted"),
    ],
)
def test_an_entry_is_new_that_the_start_had_not(site, printing, entries, value, said):
    """Entries are told whole; those of before the run are none of it."""
    site = at_start(site)
    printing |= {"sel info": info(len(entries)), "sel elist": "\n".join(entries) + "\n"}
    found = look(site)["bmc.events"]
    assert (found.value, said in found.note) == (value, True)


def test_an_empty_log_is_a_count_of_none(site, printing):
    """ipmitool lists nothing then; the controller's own count of 0 is what says so."""
    printing |= {"sel info": info(0), "sel elist": ""}
    assert look(at_start(site))["bmc.events"].value == 0


@pytest.mark.parametrize("text", ["", "\n", f"{OLD}\n"])
def test_a_list_that_is_shorter_than_the_count_is_no_list(site, printing, text):
    """A list that was cut short hides what happened."""
    printing |= {"sel info": info(2), "sel elist": text}
    assert "counts 2 entries" in look(at_start(site))["bmc.events"].reason


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        (info(free=4), "the event log is full"),
        (info(overflow="true"), "the event log is full"),
        (info(free=16), None),
    ],
)
def test_a_full_log_proves_no_none(site, printing, said, missing):
    """A log that takes no entry has none to show; one entry that was seen counts as at least one."""
    printing["sel info"] = said
    site = at_start(site)
    found = look(site)["bmc.events"]
    assert missing in found.reason if missing else found.value == 0
    printing |= {"sel elist": f"{OLD}\n{FAN}\n"}
    assert look(site)["bmc.events"].value == (Interval(1, None) if missing else 1)


def test_a_log_that_was_cleared_proves_no_none(site, printing):
    """What somebody cleared in the run may have held anything."""
    site = at_start(site)
    printing |= {"sel info": info(0), "sel elist": ""}
    assert "1 entries of the start are gone" in look(site)["bmc.events"].reason


def test_many_entries_are_counted(site, printing):
    """A note has room for some; the rest is a number."""
    site = at_start(site)
    new = "".join(f"  {n:>2x} | 01/01/2026 | 08:00:0{n % 9} UTC | Fan FAN1 | x | Asserted\n" for n in range(2, 10))
    printing |= {"sel info": info(9), "sel elist": f"{OLD}\n{new}"}
    assert look(site)["bmc.events"].note.endswith("and 3 more")


@pytest.mark.parametrize("text", ["Get SEL Info command failed\n", "<html>\n", "x | y | z\n", "12345 | a\n", "1 |\n"])
def test_a_line_that_is_no_entry_is_refused(text):
    """An error in place of a list is not an empty list."""
    with pytest.raises(Unmeasurable, match="no entry of an event log"):
        bmc.parse_entries(text)


# sensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"FAN1": ("lcr", "200 RPM")}, "FAN1 lcr, 200 RPM"),
        ({"CPU1_Temp": ("unr", "101 degrees C")}, "CPU1 Temp unr, 101 degrees C"),
        ({"CPU1_Temp": ("cr", "96 degrees C")}, "CPU1 Temp cr"),
        ({"CPU1_Temp": ("unc", "88 degrees C")}, ""),
        ({"PSU1_Status": ("ok", "Presence detected, Failure detected")}, "PSU1 Status Presence detected, Failure"),
        ({"PSU1_Status": ("ok", "Presence detected, Configuration Error")}, "PSU1 Status Presence detected, Config"),
        ({"Chassis": ("ok", "PCI SERR")}, "Chassis PCI SERR"),
        ({"Chassis": ("ok", "Bus Degraded")}, "Chassis Bus Degraded"),
        ({"Chassis": ("ok", "Parity")}, "Chassis Parity"),
        ({"PSU1_Status": ("ok", "Presence detected, Power Supply AC lost")}, "PSU1 Status"),
        ({"PSU1_Status": ("ok", "Redundancy Lost")}, "PSU1 Status Redundancy Lost"),
        ({"PSU1_Status": ("ok", "Fully Redundant")}, ""),
        ({"PSU1_Status": ("ok", "Predictive Failure Deasserted")}, ""),
        ({"PSU1_Status": ("ok", "Predictive Failure Asserted")}, "PSU1 Status"),
        ({"PSU1_Status": ("ok", "Limit Not Exceeded")}, ""),
        ({"PSU1_Status": ("ok", "Limit Exceeded")}, "PSU1 Status"),
        ({"Chassis": ("ok", "Drive Present, Drive Fault")}, "Chassis"),
        ({"Chassis": ("ok", "Uncorrectable ECC")}, "Chassis"),
        ({"Chassis": ("ok", "Correctable ECC")}, ""),
        ({"FAN1": ("ok", "0 RPM")}, "FAN1 stands still, 1500 RPM at the start"),
        ({"FAN1": ("ns", "No Reading")}, "FAN1 reads nothing, 1500 RPM at the start"),
        ({"FAN1": None}, "FAN1 reads nothing, 1500 RPM at the start"),
        ({"FAN5": ("ok", "900 RPM")}, ""),
        ({"FAN5": None}, ""),
    ],
)
def test_a_sensor_is_bad_by_its_threshold_its_state_or_its_silence(site, printing, changed, said):
    """Warnings are none; a state of damage counts though ipmitool calls it ok, and a fan that stops."""
    site = at_start(site)
    printing["sdr elist"] = elist(**changed)
    found = look(site)["bmc.sensors"]
    assert found.value == (1 if said else 0), found.note
    assert said in found.note


@pytest.mark.parametrize("text", ["", "\n", elist().replace(" ok ", " ns ").replace(" unc ", " ns ")])
def test_sensors_that_read_nothing_are_no_healthy_ones(text):
    """No sensor, or only silent ones, is an absence."""
    with pytest.raises(Unmeasurable, match="none reads anything"):
        bmc.parse_sensors(text)


@pytest.mark.parametrize(
    "text", ["Error\n", "FAN1 | 41h | ok | 29.1\n", "FAN1 | 41h | fine | 29.1 | 9 RPM\n", "<html>\n"]
)
def test_a_line_that_is_no_sensor_is_refused(text):
    """A status that is not the tool's is not taken for a good one."""
    with pytest.raises(Unmeasurable, match="no sensor"):
        bmc.parse_sensors(elist() + text)


# power ---------------------------------------------------------------------------------------


def test_the_meters_highest_reading_follows_a_burn(site):
    """The wall shows what cards, CPU and the rest draw, divided by the supplies' efficiency."""
    before = electrical.read_dcmi(site)
    with site.world.machine.runs("burn", dict.fromkeys(range(4), 1.0)):
        site.world.clock.sleep(30)
    (found,) = electrical.wall(replace(site, before=before))
    assert found.value == pytest.approx((4 * 450 + 145) / 0.9, rel=0.02)


# any text ------------------------------------------------------------------------------------


LINES = [
    *elist().splitlines(),
    *info().splitlines(),
    OLD,
    FAN,
    "Entries : x",
    "Entries : 99999",
    "a | b | ok | d | ",
    "",
    "\r",
]
TEXTS = st.text() | st.lists(st.sampled_from(LINES), max_size=8).map("\n".join)


@pytest.mark.parametrize("parse", [bmc.parse_info, bmc.parse_entries, bmc.parse_sensors])
@FUZZ
@given(text=TEXTS)
def test_any_text_is_read_or_no_measurement(parse, text):
    """A parser answers with something or says why not."""
    with suppress(Unmeasurable):
        assert parse(text) is not None


@FUZZ
@given(listed=TEXTS, count=TEXTS, sensors=TEXTS)
def test_whatever_ipmitool_prints_no_zero_comes_of_nothing(listed, count, sensors):
    """Zero entries need the controller's own count, zero bad sensors at least one that reads."""
    printed = {"sel info": count, "sel elist": listed, "sdr elist": sensors}
    run = lambda argv, *, timeout: Completed(tuple(argv), 0, printed[" ".join(argv[1:])], "", 0.1)  # noqa: E731
    site = Site(SimpleNamespace(command=run), SimpleNamespace(name="box"), "host", {}, lambda name, text: "digest")
    found = look(at_start(site))
    assert isinstance(found["bmc.events"], NotMeasured) or "Entries" in count
    assert isinstance(found["bmc.sensors"], NotMeasured) or re.search(r"\| (ok|unc) +\|", sensors)
    assert all(isinstance(outcome, Measurement | NotMeasured) for outcome in found.values())
