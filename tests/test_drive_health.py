"""A drive's own log is read by either tool, in its units and words, or the reason says why not."""

import copy
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.drives import health as drive_health
from pytest_gpuaccept.probes.drives.drive import Backing, Drive, Mount
from pytest_gpuaccept.probes.drives.health import Health, State, parse_nvme, parse_smartctl, read
from pytest_gpuaccept.profile import DeviceFacts, Profile
from pytest_gpuaccept.world import Completed, Disk

FUZZ = settings(deadline=None, database=None)
NVME = {
    "critical_warning": 0, "temperature": 311, "avail_spare": 100, "spare_thresh": 10, "percent_used": 1,
    "endurance_grp_critical_warning_summary": 0, "data_units_read": 13898198, "data_units_written": 21210849,
    "host_read_commands": 459217404, "host_write_commands": 211574086, "controller_busy_time": 310, "power_cycles": 36,
    "power_on_hours": 84, "unsafe_shutdowns": 31, "media_errors": 0, "num_err_log_entries": 4804,
    "warning_temp_time": 2, "critical_comp_time": 1, "temperature_sensor_1": 311, "thm_temp1_trans_count": 3,
    "thm_temp2_trans_count": 4, "thm_temp1_total_time": 0, "thm_temp2_total_time": 0,
}  # fmt: skip
SMART = {
    "json_format_version": [1, 0],
    "smartctl": {"version": [7, 4], "exit_status": 0},
    "device": {"name": "/dev/nvme0", "type": "nvme", "protocol": "NVMe"},
    "nvme_smart_health_information_log": {
        "critical_warning": 0, "temperature": 38, "available_spare": 100, "available_spare_threshold": 10,
        "percentage_used": 1, "data_units_read": 13898198, "data_units_written": 21210849, "host_reads": 459217404,
        "host_writes": 211574086, "controller_busy_time": 310, "power_cycles": 36, "power_on_hours": 84,
        "unsafe_shutdowns": 31, "media_errors": 0, "num_err_log_entries": 4804, "warning_temp_time": 2,
        "critical_comp_time": 1, "temperature_sensors": [38],
    },
}  # fmt: skip
LOG = "nvme_smart_health_information_log"
HEALTH = Health("nvme", 0, 38.0, 0, 100, 10, 1, 84, 31, 21210849 * 512_000, 4804, 3, 7)
SSD = Drive("259:0", "nvme0n1", "/sys/class/nvme/nvme0")


def done(out, status=0, err=""):
    """Return a command that ended; `out` is text, or what its JSON says."""
    return Completed(("tool",), status, out if isinstance(out, str) else json.dumps(out), err, 0.1)


def smart(**changes):
    """Return smartctl's report with figures of the log replaced."""
    report = copy.deepcopy(SMART)
    report[LOG] |= changes
    return report


# parsers -----------------------------------------------------------------------------------------


def test_both_tools_read_one_log_alike():
    """Kelvin and its own words in nvme-cli, Celsius and others in smartctl, which hides thermal transitions."""
    assert parse_nvme(done(NVME)) == HEALTH
    assert parse_smartctl(done(SMART)) == replace(HEALTH, tool="smartctl", throttled=None)


WARNINGS = [4, "4", 4.0, {"value": 4, "available_spare": 0, "reliability": 1}, {"value": "4"}]
NO_COUNTERS = [
    -1, "-1", 2**128, "9" * 40, 1.5, "1.5", "1,234", "", " 7", "0x07", "٣", None, True, [], {}, float("nan"),
    float("inf"),
]  # fmt: skip


@pytest.mark.parametrize("warning", WARNINGS, ids=repr)
def test_a_critical_warning_is_a_number_a_text_or_an_object(warning):
    """Whatever form a version of the tool gives it, its bits are the same."""
    assert parse_nvme(done({**NVME, "critical_warning": warning})).critical_warning == 4
    assert parse_smartctl(done(smart(critical_warning=warning), 8)).critical_warning == 4


@pytest.mark.parametrize("units", [2**128 - 1, str(2**128 - 1), 2.0**100], ids=repr)
def test_counters_of_sixteen_bytes_are_exact(units):
    """A counter may be longer than a word of the machine, and comes as a number or as a text."""
    assert parse_nvme(done({**NVME, "data_units_written": units})).written_bytes == int(units) * 512_000


@pytest.mark.parametrize("value", NO_COUNTERS, ids=repr)
@pytest.mark.parametrize("key", ["media_errors", "critical_warning", "percent_used", "data_units_written"])
def test_what_is_no_counter_voids_the_log(key, value):
    """A figure that is none is named, never taken for 0."""
    with pytest.raises(Unmeasurable, match=r"nvme: the drive's log cannot be read \((Value|Key)Error"):
        parse_nvme(done({**NVME, key: value}))


@pytest.mark.parametrize(
    ("tool", "kelvin"), [(parse_nvme, 0), (parse_nvme, 38), (parse_nvme, 500), (parse_smartctl, 311)]
)
def test_a_temperature_in_the_other_unit_voids_the_log(tool, kelvin):
    """Celsius where kelvin belong, or kelvin where Celsius do, is no temperature of a drive; nor is a log of zeros."""
    report = {**NVME, "temperature": kelvin} if tool is parse_nvme else smart(temperature=kelvin)
    with pytest.raises(Unmeasurable, match=r"-?\d+ C is no temperature of a drive"):
        tool(done(report))


@pytest.mark.parametrize("key", ["critical_warning", "temperature", "avail_spare", "media_errors", "warning_temp_time"])
def test_a_log_that_lacks_a_figure_is_no_log(key):
    """What the drive does not say is not 0."""
    with pytest.raises(Unmeasurable, match=f"KeyError: '{key}'"):
        parse_nvme(done({name: value for name, value in NVME.items() if name != key}))


@pytest.mark.parametrize(
    ("out", "status", "err", "said"),
    [
        ("", 1, "/dev/nvme0: Permission denied\nUsage: nvme smart-log\n", "/dev/nvme0: Permission denied: .* as root"),
        ("", 1, "/dev/nvme0: No such file or directory\n", "/dev/nvme0: No such file or directory$"),
        ({"error": "failed to open /dev/nvme0: Operation not permitted"}, 1, "", "nvme: failed to open .* as root"),
        ("NVMe status: Invalid Log Page(0x109)\n", 1, "", r"nvme: NVMe status: Invalid Log Page\(0x109\)"),
        ("", 1, "", "nvme: no reason given"),
        ("", 0, "", "nvme: said nothing"),
        ("Smart Log for NVME device:nvme0\n", 0, "", "nvme: Smart Log for NVME device:nvme0"),
        ([1, 2], 0, "", r"nvme: \[1, 2\]"),
        (NVME, 1, "NVMe status: Operation Denied(0x15)\n", r"Operation Denied\(0x15\)"),
    ],
)
def test_nvme_clis_refusals_are_told_in_its_words(out, status, err, said):
    """No permission names its remedy; no device, no log, a locked drive and an older tool are quoted."""
    with pytest.raises(Unmeasurable, match=said):
        parse_nvme(done(out, status, err))


@pytest.mark.parametrize("bits", [4, 8, 16, 64, 128, 8 | 64, 4 | 8 | 16 | 32 | 64 | 128])
def test_findings_in_smartctls_status_are_no_failure(bits):
    """Bits 2 to 7 say something of the drive, which its log says too; the log counts."""
    assert parse_smartctl(done(smart(media_errors=2), bits)).media_errors == 2


@pytest.mark.parametrize("bits", [1, 2, 3, 2 | 8])
def test_a_report_of_a_drive_that_was_not_opened_is_none(bits):
    """Bits 0 and 1 say that smartctl did not get there, whatever it printed."""
    with pytest.raises(Unmeasurable, match="smartctl: no NVMe health log"):
        parse_smartctl(done(SMART, bits))


def told(*messages):
    """Return smartctl's report of a failure."""
    return {"smartctl": {"exit_status": 2, "messages": [{"string": text, "severity": "error"} for text in messages]}}


@pytest.mark.parametrize(
    ("out", "status", "said"),
    [
        (told("Smartctl open device: /dev/nvme0 failed: Permission denied"), 2, "Permission denied: .* as root"),
        (told("/dev/sda: Unknown USB bridge [0x152d:0x0583 (0x205)]"), 1, "Unknown USB bridge"),
        (told("Read NVMe SMART/Health Information failed: NVMe Status 0x2002"), 4, "NVMe Status 0x2002"),
        ({"smartctl": {"messages": "?"}}, 0, "no NVMe health log in its report"),
        ({"smartctl": [], "ata_smart_attributes": {}}, 0, "no NVMe health log in its report"),
        ({LOG: []}, 0, "no NVMe health log in its report"),
        ("smartctl 6.6: UNRECOGNIZED OPTION: json\n", 1, "UNRECOGNIZED OPTION: json"),
        ("", 0, "smartctl: said nothing"),
        ("null", 0, "smartctl: null"),
    ],
)
def test_smartctls_refusals_are_told_in_its_words(out, status, said):
    """A locked drive, a USB bridge, a drive without the log and an older tool are quoted."""
    with pytest.raises(Unmeasurable, match=said):
        parse_smartctl(done(out, status))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@FUZZ
@given(key=st.sampled_from(sorted(NVME)), value=JSON)
def test_any_value_in_a_log_is_that_value_or_a_reason(key, value):
    """No value, however strange, is an exception or becomes another figure."""
    with suppress(Unmeasurable):
        found = parse_nvme(done({**NVME, key: value}))
        media = value if key == "media_errors" else 0
        assert found.media_errors == int(media)
        assert found.critical_warning == (0 if key != "critical_warning" or isinstance(value, dict) else int(value))


@FUZZ
@given(text=st.text() | JSON.map(json.dumps), status=st.integers(0, 255), err=st.text())
def test_any_text_is_no_log(text, status, err):
    """Text that a tool never printed is a reason, from either parser."""
    for parse in (parse_nvme, parse_smartctl):
        with pytest.raises(Unmeasurable):
            parse(done(text, status, err))


@FUZZ
@given(changes=st.dictionaries(st.sampled_from([LOG, "smartctl"]), JSON), status=st.integers(0, 255))
def test_any_report_of_smartctl_is_a_log_or_a_reason(changes, status):
    """Whatever stands where the log or the messages belong, and whatever the status, nothing else is raised."""
    with suppress(Unmeasurable):
        assert parse_smartctl(done({**SMART, **changes}, status)).hours == 84


# probe -------------------------------------------------------------------------------------------


class World:
    """A world of two tools: name -> what it answers, for any drive or by the last word of the command."""

    def __init__(self, **tools):
        self.tools, self.asked = tools, []

    def has(self, tool):
        """Say whether it is there."""
        return tool in self.tools

    def command(self, argv, *, timeout, watch=None):
        """Answer as the tool, or raise what it was given."""
        self.asked.append(argv)
        answer = self.tools[argv[0]]
        answer = answer[argv[-1]] if isinstance(answer, dict) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_first_tool_that_answers_is_taken():
    """nvme-cli says more, so it is asked first; the controller is asked, not a namespace."""
    world = World(nvme=done(NVME), smartctl=done(SMART))
    assert read(world, SSD).tool == "nvme"
    assert world.asked == [["nvme", "smart-log", "--output-format=json", "/dev/nvme0"]]
    world = World(nvme=done("", 1, "unknown command\n"), smartctl=done(SMART))
    assert read(world, SSD).tool == "smartctl"


def test_without_an_answer_every_tool_is_quoted():
    """The reasons of both stand side by side, also of one that did not end."""
    world = World(nvme=Unmeasurable("nvme was still running after 30 s"), smartctl=done(told("USB bridge"), 1))
    with pytest.raises(Unmeasurable, match="nvme was still running after 30 s; smartctl: USB bridge"):
        read(world, SSD)


def test_without_a_tool_one_is_named():
    """The remedy is one line."""
    with pytest.raises(Unmeasurable, match="apt-get install nvme-cli"):
        read(World(), SSD)


def test_a_drive_that_is_no_nvme_has_no_such_log():
    """No tool is asked about a SATA or virtual disk, nor about one behind a USB bridge."""
    world = World(nvme=done(NVME))
    with pytest.raises(Unmeasurable, match="sdb is no NVMe drive: it has no NVMe health log"):
        read(world, Drive("8:16", "sdb", ""))
    assert world.asked == []


@pytest.fixture
def site(monkeypatch):
    """Return a function that makes the site of drives with these logs, and what was read before."""

    def make(*logs, before=None, tool="nvme"):
        drives = tuple(Drive(f"259:{n}", f"nvme{n}n1", f"/sys/class/nvme/nvme{n}") for n in range(len(logs)))
        mount = Mount("259:0", "/mnt", "ext4", "/dev/nvme0n1", ("rw",))
        monkeypatch.setattr(drive_health, "drives_of", lambda site: Backing(Disk("259:0", 0), mount, "nvme0n1", drives))
        world = World(**{tool: {f"/dev/nvme{n}": done(log) for n, log in enumerate(logs)}})
        facts = {"nvme0": DeviceFacts(mount="/mnt")}
        profile = Profile(name="box", title="Box", devices={"nvme": ("nvme0",)}, device=facts, lines={})
        return Site(world, profile, "nvme0", {}, lambda name, text: name, before=before)

    return make


def values(outcomes):
    """Return value or reason of each metric, by the last word of its name."""
    return {
        o.metric.rpartition(".")[2]: o.value if isinstance(o, Measurement) else o.reason for o in outcomes
    }  # fmt: skip


def test_what_a_run_added_is_counted_from_its_start(site):
    """Old shutdowns and transitions are the past; those of the run count, with the drive's counter as proof."""
    later = {
        **NVME,
        "unsafe_shutdowns": 32,
        "thm_temp2_trans_count": 6,
        "critical_comp_time": 5,
        "num_err_log_entries": 4806,
    }
    found = list(drive_health.health(site(later, before=drive_health.start(site(NVME)))))
    assert values(found) == {
        "media_errors": 0, "critical_warning": 0, "spare": 100, "used": 1, "hours": 84, "unsafe_shutdowns": 1,
        "throttle": 2, "overheated": 4,
    }  # fmt: skip
    shutdowns = next(m for m in found if m.metric == "nvme.health.unsafe_shutdowns")
    assert shutdowns.proof == "the drive's own counter, read by nvme at both ends of the run"
    assert shutdowns.conditions == {"error_log_entries_added": 2}
    assert found[0].conditions == {"tool": "nvme", "written_tb": 10.86, "spare_threshold": 10, "temperature_c": 38.0}


def test_of_several_drives_the_worst_counts(site):
    """Errors add up, warnings are joined, the least spare and the most wear and hours stand for all."""
    other = {
        **NVME,
        "media_errors": 2,
        "critical_warning": 1,
        "avail_spare": 7,
        "percent_used": 80,
        "power_on_hours": 9,
    }
    two = (other, {**NVME, "media_errors": 3, "critical_warning": 4})
    found = values(drive_health.health(site(*two, before=State((HEALTH, HEALTH)))))
    assert found["media_errors"] == 5
    assert (found["critical_warning"], found["spare"], found["used"], found["hours"]) == (5, 7, 80, 84)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (None, "nothing was read at the start of the run"),
        (Unmeasurable("nvme: Permission denied"), "nvme: Permission denied"),
        (
            State((replace(HEALTH, unsafe_shutdowns=40, throttled=40, hot_minutes=40),)),
            "a counter fell, or a drive is gone",
        ),
        (State((HEALTH, HEALTH)), "a counter fell, or a drive is gone"),
    ],
)
def test_without_a_start_to_compare_with_nothing_is_said_of_the_run(site, before, reason):
    """A log that was not read, or is of another drive, proves no absence; what it says of now still counts."""
    found = values(drive_health.health(site(NVME, before=before)))
    assert all(reason in str(found.pop(name)) for name in ("unsafe_shutdowns", "throttle", "overheated"))
    assert found == {"media_errors": 0, "critical_warning": 0, "spare": 100, "used": 1, "hours": 84}


def test_what_smartctl_hides_is_not_zero(site):
    """Thermal transitions are not in its report: the remedy is the other tool."""
    before = drive_health.start(site(SMART, tool="smartctl"))
    found = values(drive_health.health(site(SMART, before=before, tool="smartctl")))
    assert found["throttle"] == "smartctl does not report it; install nvme-cli: apt-get install nvme-cli"
    assert (found["unsafe_shutdowns"], found["overheated"]) == (0, 0)
