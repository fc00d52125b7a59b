"""What keeps a machine as it was delivered: static units, pins, clocks, failed units, space in volume groups."""

import json
from dataclasses import replace

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.services import upkeep, volumes
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

DAEMON = "/usr/bin/nvidia-persistenced --user nvidia-persistenced"
SHOWN = {
    "LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled",
    "ExecStart": f"{{ path=/usr/bin/nvidia-persistenced ; argv[]={DAEMON} ; ignore_errors=no }}", "WantedBy": "",
}  # fmt: skip
DRIVER = ["libnvidia-compute-590", "nvidia-dkms-590-open", "nvidia-driver-590-open"]
ON = 'APT::Periodic::Unattended-Upgrade "1";\n'
NO_SYSTEMD = "System has not been booted with systemd as init system (PID 1). Can't operate.\nHost is down\n"
NOT_ROOT = "  WARNING: Running as a non-root user. Functionality may be unavailable.\n"
GIB = 2**30


@pytest.fixture
def kept():
    """Return what the probes kept in the evidence, by name."""
    return {}


@pytest.fixture
def site(profile, kept):
    """Return what a probe of the host is given on a healthy simulated machine."""
    world = SimWorld(profile, Scenario("healthy"))
    return Site(world, profile, "host", {}, kept.setdefault)


def look(site):
    """Return the outcomes of the upkeep by metric."""
    return {outcome.metric: outcome for outcome in upkeep.upkeep(site)}


@pytest.fixture
def tools(site, monkeypatch):
    """Let tools print something else: {words of the command line: (status, stdout, stderr)}; None for no such tool."""
    answers, real = {}, site.world.command

    def command(argv, *, timeout, watch=None):
        line = " ".join(argv)
        printed = next((answer for words, answer in answers.items() if words in line), real)
        if printed is None:
            message = f"{argv[0]} cannot be started: No such file or directory"
            raise Unmeasurable(message)
        return real(argv, timeout=timeout) if printed is real else Completed(tuple(argv), *printed, 0.1)

    monkeypatch.setattr(site.world, "command", command)
    return answers


def test_a_well_delivered_machine_stays_as_it_is(site):
    """Every tool of a healthy machine says what is wished."""
    found = {metric: outcome.value for metric, outcome in look(site).items()}
    assert found == {
        "service.persistence_boot": True, "service.driver_pinned": True, "service.time_sync": True,
        "service.failed_units": 0, "service.smartd": "active", "service.rasdaemon": "active",
        "host.lvm.unallocated": pytest.approx(5.0, abs=0.01),
    }  # fmt: skip


def test_a_machine_without_these_tools_measures_nothing(site, monkeypatch):
    """Where nothing can be asked, nothing is known, and every reason names its tool."""

    def gone(argv, *, timeout, watch=None):
        message = f"{argv[0]} cannot be started: No such file or directory"
        raise Unmeasurable(message)

    monkeypatch.setattr(site.world, "command", gone)
    found = look(site)
    assert {type(outcome) for outcome in found.values()} == {NotMeasured}
    assert all("cannot be started" in outcome.reason for outcome in found.values())


def test_a_machine_that_another_init_booted_has_no_units_to_count(site):
    """A container without systemd is no machine without failed units; what needs no unit is measured there too."""
    site.world.machine.host.systemd = False
    found = look(site)
    without = ("persistence_boot", "failed_units", "smartd", "rasdaemon")
    reasons = [found[f"service.{name}"].reason for name in without]
    assert all("not been booted with systemd" in reason and reason.endswith("run on the host") for reason in reasons)
    assert not any("\n" in reason for reason in reasons)
    assert found["service.driver_pinned"].value is True


# persistence ---------------------------------------------------------------------------------


def show(**changed):
    """Return what systemctl prints of the daemon, properties changed by name."""
    return 0, "".join(f"{key}={value}\n" for key, value in {**SHOWN, **changed}.items()), ""


@pytest.mark.parametrize(
    ("changed", "value", "said"),
    [
        ({}, True, "its unit is enabled"),
        ({"UnitFileState": "static"}, True, "the udev rules of /usr/lib/udev/rules.d/71-nvidia.rules start it"),
        ({"UnitFileState": "static", "WantedBy": "multi-user.target"}, True, "wanted by multi-user.target"),
        ({"ExecStart": f"{{ argv[]={DAEMON} --no-persistence-mode }}"}, False, "override ExecStart"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, False, "its unit is masked"),
        ({"LoadState": "not-found", "ActiveState": "inactive", "ExecStart": ""}, False, "its unit is not-found"),
        ({"ActiveState": "failed"}, False, "it is failed"),
        ({"ActiveState": "inactive"}, False, "it is inactive"),
        ({"DropInPaths": "/run/systemd/system/x.d/mode.conf"}, False, "is gone with the next start"),
        ({"FragmentPath": "/run/systemd/transient/nvidia-persistenced.service"}, False, "is gone with the next start"),
    ],
)
def test_a_daemon_counts_that_is_started_at_boot_and_turns_the_mode_on(site, tools, changed, value, said):
    """Active is not enough: the unit must be started by something, and without the option that leaves the mode off."""
    tools["show -p LoadState,ActiveState,UnitFileState"] = show(**changed)
    found = look(site)["service.persistence_boot"]
    assert (found.value, said in found.note) == (value, True), found.note


def test_a_unit_enabled_until_the_next_start_does_not_survive_it(site, tools, monkeypatch):
    """What wants it then lies in /run too."""
    monkeypatch.setattr(upkeep, "UDEV", ())
    runtime = {"UnitFileState": "enabled-runtime", "WantedBy": "multi-user.target"}
    tools["show -p LoadState,ActiveState,UnitFileState"] = show(**runtime)
    assert look(site)["service.persistence_boot"].value is False


@pytest.mark.parametrize(
    "rule", ["", '# RUN+="systemctl start nvidia-persistenced"', 'RUN+="systemctl stop nvidia-persistenced"']
)
def test_a_static_unit_that_nothing_starts_does_not_survive(site, tools, monkeypatch, rule):
    """A static unit without a rule, or with one that is a comment or stops it, is active today only."""
    tools["show -p LoadState,ActiveState,UnitFileState"] = show(UnitFileState="static")
    monkeypatch.setattr(site.world, "read", lambda path: rule)
    found = look(site)["service.persistence_boot"]
    assert (found.value, "nothing was found that starts it" in found.note) == (False, True)


@pytest.mark.parametrize("text", ["", "\n", "ActiveState=active\n", "LoadState=loaded\n", "LoadState\n"])
def test_a_unit_of_which_nothing_is_shown_is_an_absence(site, tools, text):
    """Missing properties are no good ones."""
    tools["show -p LoadState,ActiveState,UnitFileState"] = (0, text, "")
    assert isinstance(look(site)["service.persistence_boot"], NotMeasured)


# driver --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "dump", "how"),
    [
        (set(), ON, ""),
        ({"nvidia-driver-590-open"}, ON, "nvidia-driver-590-open on hold"),
        ({"libnvidia-compute-590"}, ON, ""),
        (set(DRIVER) - {"nvidia-driver-590-open"}, ON, ""),
        ({"bash"}, ON, ""),
        (set(), ON + 'Unattended-Upgrade::Package-Blacklist:: "(lib)?nvidia-";\n', "leave out (lib)?nvidia-"),
        (set(), ON + 'Unattended-Upgrade::Package-Blacklist:: "nvidia-";\n', ""),
        (set(), ON + 'Unattended-Upgrade::Package-Blacklist:: "(((";\n', ""),
        (set(), 'APT::Periodic::Unattended-Upgrade "0";\n', "unattended upgrades are off"),
        (set(), 'APT::Architecture "amd64";\n', "unattended upgrades are off"),
        (set(), 'APT::Periodic::Unattended-Upgrade "0";\n' + ON, ""),
        (set(), ON + 'APT::Periodic::Enable "0";\n', "unattended upgrades are off"),
        (set(), ON + 'APT::Periodic::Enable "1";\n', ""),
    ],
)
def test_a_driver_is_pinned_by_its_whole(held, dump, how):
    """The package that requires all others on hold is enough, one part of them is not; the last setting counts."""
    found = upkeep.pin(DRIVER, held, dump)
    assert (how in found, bool(found)) == (True, bool(how))


def test_parts_of_a_driver_without_a_whole_must_all_be_held():
    """Without the metapackage, a part that is not held is what gets upgraded."""
    assert upkeep.pin(DRIVER[:2], set(DRIVER[:2]), ON)
    assert not upkeep.pin(DRIVER[:2], set(DRIVER[:1]), ON)


def test_settings_that_cannot_be_read_turn_nothing_off():
    """An empty dump is not a machine without unattended upgrades."""
    with pytest.raises(Unmeasurable, match="apt-config"):
        upkeep.pin(DRIVER, set(), "")


def test_a_driver_that_is_no_package_cannot_be_pinned_by_apt(site, tools):
    """What the installer put there is nothing that a hold could keep."""
    tools["dpkg-query"] = (0, "ii bash\nrc nvidia-driver-580\n", "")
    assert "no package of the NVIDIA driver" in look(site)["service.driver_pinned"].reason


def test_another_package_manager_is_said(site, monkeypatch):
    """On a system without apt the reason says where to look."""
    monkeypatch.setattr(site.world, "has", lambda tool: tool != "apt-mark")
    assert "versionlock" in look(site)["service.driver_pinned"].reason


def test_a_foreign_architecture_is_the_same_package(site, tools):
    """apt-mark writes some packages with their architecture."""
    tools["apt-mark"] = (0, "nvidia-driver-590-open:amd64\n", "")
    assert "on hold" in look(site)["service.driver_pinned"].note


# clock ---------------------------------------------------------------------------------------


CHRONY = (
    "Reference ID    : A29FC801 (ntp.example.org)\nStratum         : 3\n"
    "System time     : 0.000012345 seconds slow of NTP time\nLeap status     : {}\n"
)
LOCAL = CHRONY.replace("A29FC801 (ntp.example.org)", "7F7F0101 ()").format("Normal")


@pytest.mark.parametrize(
    ("systemd", "chrony", "value"),
    [
        ((0, "NTPSynchronized=yes\n", ""), None, True),
        ((0, "NTPSynchronized=no\n", ""), None, False),
        ((0, "NTPSynchronized=no\n", ""), (0, CHRONY.format("Normal"), ""), True),
        ((0, "NTPSynchronized=no\n", ""), (0, CHRONY.format("Not synchronised"), ""), False),
        ((1, "", NO_SYSTEMD), (0, CHRONY.format("Normal"), ""), True),
        (None, (0, LOCAL, ""), False),
        (None, (0, CHRONY.replace("0.000012345", "3600.2").format("Normal"), ""), False),
        (None, (0, CHRONY.format("Not synchronised"), ""), False),
        ((1, "", NO_SYSTEMD), (1, "506 Cannot talk to daemon\n", ""), None),
        ((0, "", ""), None, None),
        (None, (0, "Reference ID\n", ""), None),
    ],
)
def test_a_clock_follows_another_when_systemd_or_chrony_says_so(site, tools, systemd, chrony, value):
    """Either word is enough for yes; without any there is none, and not a no."""
    tools["timedatectl"], tools["chronyc"] = systemd, chrony
    found = look(site)["service.time_sync"]
    assert (found.value if isinstance(found, Measurement) else None) is value


@pytest.mark.parametrize(
    ("by", "passed", "value"),
    [(0.9, 60, True), (-37.0, 60, False), (3600.0, 60, False), (5.0, 7200, True), (9.0, 7200, False)],
)
def test_a_clock_that_was_set_in_the_run_is_not_synchronised(site, by, passed, value):
    """A step voids the times of the run whoever says that all is well; a slew, half a second in 1000 s, does not."""
    now = upkeep.moment(site)
    first = replace(now, wall=now.wall - passed - by, monotonic=now.monotonic - passed)
    found = look(replace(site, memory={upkeep.CLOCKS: first}))["service.time_sync"]
    assert found.value is value
    assert (f"{by:+.1f} s during the run" in found.note) is not value


def test_without_two_moments_of_one_boot_no_step_is_seen(site):
    """Another boot has a clock of its own, and so may have a run that is resumed; that it was is another's finding."""
    first = replace(upkeep.remember(site), boot="another boot", wall=0.0)
    assert look(replace(site, memory={upkeep.CLOCKS: first}))["service.time_sync"].value is True
    assert look(replace(site, memory={}, before=first))["service.time_sync"].value is True


def test_the_start_is_remembered_by_the_process(site):
    """What the probe reads before the run is what it compares with after."""
    assert upkeep.remember(site) == site.memory[upkeep.CLOCKS] == upkeep.moment(site)


# units ---------------------------------------------------------------------------------------


PLAIN = (
    "{}fwupd-refresh.service loaded failed failed Refresh fwupd metadata\ndisk-a.mount loaded failed failed Disk A\n"
)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("[]\n", []),
        ('[{"unit":"a.service","load":"loaded"},{"unit":"b@1.timer"}]', ["a.service", "b@1.timer"]),
        ("", []),
        (PLAIN.format(""), ["fwupd-refresh.service", "disk-a.mount"]),
        (PLAIN.format("\u25cf "), ["fwupd-refresh.service", "disk-a.mount"]),
    ],
)
def test_failed_units_are_read_from_json_and_from_the_older_table(text, units):
    """A systemd that does not know JSON for lists prints a table whatever it is asked."""
    assert upkeep.parse_units(text) == units


@pytest.mark.parametrize("text", ["[", "{}", "[1]", '[{"unit": 1}]', "0 loaded units listed.\n", "[[]]", "[" * 9999])
def test_what_is_no_list_of_units_is_an_absence(text):
    """Rubbish is not zero units."""
    with pytest.raises(Unmeasurable, match="systemctl"):
        upkeep.parse_units(text)


def test_failed_units_are_named_and_their_last_lines_kept(site, kept):
    """The note names them, the evidence holds what they said last."""
    site.world.machine.host.failed_units = 7
    found = look(site)["service.failed_units"]
    assert (found.value, "fwupd-refresh.service" in found.note) == (7, True)
    assert len([name for name in kept if name.startswith("failed unit: ")]) == upkeep.UNITS_SHOWN


@pytest.mark.parametrize("state", ["degraded", "offline", "", "maintenance"])
def test_an_empty_list_is_believed_when_systemd_is_well(site, tools, state):
    """systemd that calls itself degraded, or says nothing, contradicts an empty list."""
    tools["is-system-running"] = (1, f"{state}\n", "")
    assert isinstance(look(site)["service.failed_units"], NotMeasured)


def test_none_failed_has_a_proof(site):
    """What systemd says of itself is what would have shown one."""
    assert "running" in look(site)["service.failed_units"].proof


def test_a_daemon_is_looked_for_under_each_of_its_names(site, tools):
    """One package calls it smartd, another smartmontools; neither is not installed."""
    tools["ActiveState smartd"] = (0, "LoadState=not-found\nActiveState=inactive\n", "")
    tools["ActiveState smartmontools"] = (0, "LoadState=loaded\nActiveState=failed\n", "")
    tools["ActiveState rasdaemon"] = (0, "LoadState=not-found\nActiveState=inactive\n", "")
    found = look(site)
    assert found["service.smartd"].value == "failed"
    assert found["service.rasdaemon"].value == "not installed"


# volumes -------------------------------------------------------------------------------------


def report(*groups):
    """Return vgs' report of volume groups, each (name, size, free)."""
    rows = [dict(zip(("vg_name", "vg_size", "vg_free"), group, strict=True)) for group in groups]
    return json.dumps({"report": [{"vg": rows}]})


def tree(*disks):
    """Return lsblk's report of disks."""
    return json.dumps({"blockdevices": list(disks)})


def member(name, size, *volumes):
    """Return a physical volume with its volumes, each (name, size)."""
    children = [{"name": volume, "type": "lvm", "fstype": "ext4", "size": of} for volume, of in volumes]
    return {"name": name, "type": "part", "fstype": "LVM2_member", "size": size, "children": children}


def test_the_emptiest_volume_group_counts(site, tools):
    """A large one that is full hides none that was left empty."""
    tools["vgs"] = (0, report(("data", "4000", "0"), ("ubuntu-vg", "474", "374")), "")
    assert look(site)["host.lvm.unallocated"].value == pytest.approx(100 * 374 / 474)


def test_all_volume_groups_are_read_behind_a_warning():
    """vgs may print warnings before its report; sizes are bytes."""
    text = NOT_ROOT + report(("a", "100", "25"), ("b", "300", "75"))
    assert volumes.parse_vgs(text) == {"a": (100, 25), "b": (300, 75)}


@pytest.mark.parametrize(
    "text",
    ["", "<html>", report(("a", "0", "0")), report(("a", "10", "11")), report(("a", "10", "-1")),
     report(("a", float("inf"), 0)), report(("a", "1" * 40, 0))],
)  # fmt: skip
def test_sizes_that_cannot_be_are_an_absence(text):
    """More free than there is, or sizes that are no numbers, are a report that cannot be read."""
    with pytest.raises(Unmeasurable, match="vgs"):
        volumes.parse_vgs(text)


@pytest.mark.parametrize(
    "vgs", [(0, report(), NOT_ROOT), (5, "", "  Permission denied\n"), None], ids=["warned", "refused", "no-tool"]
)
def test_who_may_not_look_calculates_from_the_block_devices(site, tools, vgs):
    """An empty list is what vgs says without root; the devices show the space all the same, and the note says how."""
    tools["vgs"] = vgs
    found = look(site)["host.lvm.unallocated"]
    assert found.value == pytest.approx(5.0, abs=0.01)
    assert "by lsblk" in found.note


def test_a_machine_without_volume_groups_is_told_from_one_that_is_closed(site, tools):
    """None is said as none, with what was looked at; a report that fails is another reason."""
    tools["vgs"] = (0, report(), "")
    tools["lsblk"] = (0, tree({"name": "sda", "type": "disk", "fstype": "ext4", "size": 10}), "")
    none = look(site)["host.lvm.unallocated"].reason
    tools["lsblk"] = (0, tree({"name": "sda", "type": "disk", "fstype": None, "size": 10}), "")
    hidden = look(site)["host.lvm.unallocated"].reason
    tools["lsblk"] = (1, "", "lsblk: failed to access sysfs directory")
    closed = look(site)["host.lvm.unallocated"].reason
    assert "there is no volume group" in none
    assert "1 block devices" in none
    assert hidden == "nobody tells what is on the 1 block devices: run vgs as root, on the host"
    assert "failed to access" in closed


@pytest.mark.parametrize(
    ("disks", "sizes"),
    [
        ((member("sda2", 100, ("root", 60)),), (100, 60, 2, 2)),
        ((member("sda2", 100),), (100, 0, 1, 1)),
        ((member("sda", 100, ("data", 150)), member("sdb", 100, ("data", 150))), (200, 150, 4, 4)),
        (({"name": "sda", "size": 500, "children": [member("sda2", 100, ("root", 60))]},), (100, 60, 3, 2)),
        (({"name": "sda", "size": 500, "children": None},), (0, 0, 1, 0)),
        ((), (0, 0, 0, 0)),
    ],
)
def test_volumes_are_counted_once(disks, sizes):
    """A volume over two disks is listed below both."""
    assert volumes.parse_lsblk(tree(*disks)) == sizes


def test_more_volumes_than_space_are_no_measurement():
    """A thin or shared volume larger than its disks is what this cannot calculate."""
    with pytest.raises(Unmeasurable, match="vgs as root"):
        volumes.parse_lsblk(tree(member("sda", 100, ("thin", 200))))
