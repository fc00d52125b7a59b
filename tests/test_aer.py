"""PCIe errors: counters of both ends, three generations of log lines, whether anybody listens, which way."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel import aer
from pytest_gpuaccept.probes.kernel.config_space import SEVERITIES, Reporting, reporting
from pytest_gpuaccept.probes.kernel.log import Record, log_of
from pytest_gpuaccept.sim.pci_config import config
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld

FUZZ = settings(deadline=None, database=None)
GPU, PORT = "0000:c1:00.0", "0000:c0:01.1"
CORRECTED_4X = (
    "pcieport 0000:c0:01.1: AER: Corrected error received: id=c100",
    "pcieport 0000:c0:01.1: AER: Multiple Corrected error received: id=c100",
    "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, id=c100(Receiver ID)",
    "nvidia 0000:c1:00.0:   device [10de:2684] error status/mask=00000001/0000a000",
    "nvidia 0000:c1:00.0:    [ 0] Receiver Error         (First)",
)
CORRECTED_5X = (
    "pcieport 0000:c0:01.1: AER: Corrected error received: 0000:c1:00.0",
    "nvidia 0000:c1:00.0: AER: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Receiver ID)",
    "nvidia 0000:c1:00.0: AER: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Transmitter ID)",
    "nvidia 0000:c1:00.0: AER:    [ 6] BadTLP",
)
CORRECTED_68 = (
    "pcieport 0000:c0:01.1: AER: Multiple Correctable error message received from 0000:c1:00.0",
    "pcieport 0000:c0:01.1: AER: Correctable error message received from 0000:c1:00.0",
    "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
    "pcieport 0000:c0:01.1: AER: found no error details for 0000:c1:00.0",
)
NONE_OF_OURS = (
    "pcieport 0000:c0:01.1: AER: enabled with IRQ 36",
    "pcieport 0000:40:01.1: AER: Correctable error message received from 0000:41:00.0",
    "nvidia 0000:41:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
    "ixgbe 0000:42:00.0 eno1: NIC Link is Down",
)
GRANTED = "acpi PNP0A08:00: _OSC: OS now controls [PCIeHotplug PME AER PCIeCapability LTR]"


class Tree:
    """A machine of PCI devices in folders, each with or without error counters."""

    def __init__(self, below, counting):
        """Take {address: address of the port above, or ''} and who counts."""
        self._below, self._counting = below, counting

    def names(self, path):
        """List the devices."""
        return sorted(self._below)

    def read(self, path):
        """Return a port's name, or a counter."""
        address, _, file = path.removeprefix(f"{aer.PCI}/").partition("/")
        if file == "../uevent" and self._below[address]:
            return f"DRIVER=pcieport\nPCI_SLOT_NAME={self._below[address]}"
        if file.startswith("aer_dev_") and address in self._counting:
            return "RxErr 3\nTOTAL_ERR_COR 3"
        message = f"{path} cannot be read: No such file or directory"
        raise Unmeasurable(message)


CARD, AUDIO, DOWN, UP, ROOT = "0000:c3:00.0", "0000:c3:00.1", "0000:c2:04.0", "0000:c1:00.0", "0000:c0:01.1"


@pytest.fixture
def site(profile):
    """Return what a probe of gpu3 on a healthy simulated machine is given."""
    return Site(SimWorld(profile, Scenario("healthy")), profile, "gpu3", {}, lambda _name, _text: "digest")


def a_log(*messages):
    """Return a kernel log that begins with the boot and says these."""
    return log_of(tuple(Record(n, 6, text) for n, text in enumerate(("Linux version 6", *messages))), "dmesg")


def deaf(site, severity="corrected", log=None):
    """Return why errors of gpu3's link might go unseen."""
    return aer.deaf(site, aer.hops(site, GPU), severity, log or a_log(GRANTED))


# counters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "0\n", "RxErr 0\n", "RxErr 0\nTOTAL_ERR_COR x\n", "RxErr\nTOTAL_ERR_COR 0\n", "TOTAL_ERR_COR -1\n",
     "TOTAL_ERR_COR 0\nTOTAL_ERR_FATAL 0\n"],
)  # fmt: skip
def test_what_is_no_counter_file_is_refused(text):
    """A counter file that is cut or garbled is never read as zero."""
    with pytest.raises(Unmeasurable, match="no AER counter"):
        aer.parse_aer(text)


def test_long_and_short_names_of_counters_are_read_alike():
    """A kind has one name, whatever the kernel calls it; the total is the count of messages, not the sum of kinds."""
    text = "Receiver Error 3\nBad TLP 2\nRELAY_NUM Rollover 1\nSomething New 9\nTOTAL_ERR_COR 4\n"
    assert aer.parse_aer(text) == {"RxErr": 3, "BadTLP": 2, "Rollover": 1, "Something New": 9, "TOTAL": 4}


def test_counters_of_64_bits_are_read():
    """A count beyond 32 bits is a count."""
    assert aer.parse_aer("RxErr 0\nTOTAL_ERR_COR 18446744073709551\n")["TOTAL"] == 18446744073709551


def test_a_counter_that_went_down_is_no_growth():
    """A device that was reset has lost its count; a kind that is gone is one too."""
    for after in ({"RxErr": 1, "TOTAL": 5}, {"TOTAL": 5}):
        with pytest.raises(Unmeasurable, match="it went down"):
            aer.grown("it", {"RxErr": 2, "TOTAL": 2}, after)


# the log --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [CORRECTED_4X, CORRECTED_5X, CORRECTED_68], ids=["4.x", "5.x", "6.8"])
def test_three_generations_of_kernels_are_understood(lines):
    """Two errors are two, in the words of each kernel; others' lines and details do not count."""
    assert aer.logged_errors([*lines, *NONE_OF_OURS], "corrected", (GPU, PORT)) == 2
    assert aer.logged_errors([*lines, *NONE_OF_OURS], "uncorrected", (GPU, PORT)) == 0


@pytest.mark.parametrize(
    "line",
    [
        "pcieport 0000:c0:01.1: AER: Uncorrected (Fatal) error received: id=c009",
        "pcieport 0000:c0:01.1: AER: Uncorrected (Non-Fatal) error received: 0000:c1:00.0",
        "pcieport 0000:c0:01.1: AER: Uncorrectable (Fatal) error message received from 0000:C1:00.0",
        "nvidia 0000:c1:00.0: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer",
    ],
)
def test_uncorrected_errors_are_told_from_corrected_ones(line):
    """Fatal or not, an uncorrected error is counted as one."""
    assert aer.logged_errors([line], "uncorrected", (GPU, PORT)) == 1
    assert aer.logged_errors([line], "corrected", (GPU, PORT)) == 0


# whether anybody listens ----------------------------------------------------------------------------


@pytest.mark.parametrize("severity", ["corrected", "uncorrected"])
def test_a_healthy_machine_hears_every_error(site, severity):
    """With reporting on, nothing masked and the driver bound to the root port, no reason is given."""
    assert deaf(site, severity) == ()


@pytest.mark.parametrize("severity", ["corrected", "uncorrected"])
@pytest.mark.parametrize(
    ("parameter", "value", "said"), [("aer_reports", False, "Device Control"), ("aer_masked", True, "masks")]
)
def test_a_card_that_keeps_its_errors_to_itself_is_named(site, parameter, value, said, severity):
    """Reporting that is off, and errors that are masked, are each a reason with the card's address."""
    setattr(site.world.machine.gpus[3].p, parameter, value)
    (reason,) = deaf(site, severity)
    assert said in reason
    assert GPU in reason


def test_the_port_must_report_too(site, monkeypatch):
    """The other end of the link is looked at as the card is: what the card sends arrives there."""
    silent = bytearray(config(site.world.machine, PORT))
    silent[0x68:0x6A] = bytes(2)
    data = site.world.data
    monkeypatch.setattr(site.world, "data", lambda path: bytes(silent) if PORT in path else data(path))
    (reason,) = deaf(site)
    assert f"{PORT} does not report corrected errors" in reason


def test_registers_that_only_root_sees_prove_nothing(site, monkeypatch):
    """Of a configuration space that ends after its header nothing is known, and the remedy is root."""
    data = site.world.data
    monkeypatch.setattr(site.world, "data", lambda path: data(path)[:64])
    assert {"root only" in reason for reason in deaf(site)} == {True}


def test_a_root_port_that_nobody_listens_to_is_named(site):
    """Where the kernel's AER driver is not bound to the root port, its errors reach nobody."""
    site.world.machine.host.aer_armed = False
    assert deaf(site) == (aer.NO_SERVICE.format(PORT),)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GRANTED], ""),
        ([], "native AER"),
        ([GRANTED, "acpi PNP0A08:01: _OSC: OS now controls [PME LTR]"], "native AER"),
        ([GRANTED, "acpi: _OSC: platform retains control of PCIe features"], "native AER"),
    ],
)
def test_without_a_list_of_ports_the_boot_log_decides(site, monkeypatch, lines, said):
    """Where the kernel shows no driver, what the firmware granted counts, and one bridge without AER is enough."""
    names = site.world.names

    def listed(path):
        if path == aer.SERVICE:
            raise Unmeasurable(path)
        return names(path)

    monkeypatch.setattr(site.world, "names", listed)
    reasons = deaf(site, log=a_log(*lines))
    assert bool(reasons) == bool(said)
    assert all(said in reason for reason in reasons)
    assert deaf(site, log=Unmeasurable("no log"))[0] == "no log"


def test_a_log_cut_off_at_its_beginning_grants_nothing(site, monkeypatch):
    """Without the boot's first lines the log cannot say what the firmware granted."""
    monkeypatch.setattr(site.world, "names", lambda path: (_ for _ in ()).throw(Unmeasurable(path)))
    assert "first lines" in deaf(site, log=log_of((Record(9, 6, "later"),), "dmesg"))[0]


def test_an_option_that_blinds_the_kernel_is_named(site):
    """pci=noaer is a reason by itself."""
    site.world.machine.host.cmdline = "ro pci=noaer"
    assert "pci=noaer" in deaf(site)[0]


def test_a_hidden_port_proves_nothing(site):
    """A virtual machine shows the GPU and not its port."""
    assert aer.deaf(site, (GPU,), "corrected", a_log(GRANTED)) == (aer.NO_PORT,)


# the configuration space ----------------------------------------------------------------------------


def test_every_masked_error_is_named():
    """Each error of a link that a register masks is told by its name."""
    space = bytearray(4096)
    space[0x06], space[0x34], space[0x60], space[0x68] = 0x10, 0x60, 0x10, 0x0F
    space[0x100:0x104] = (0x00010001).to_bytes(4, "little")
    for severity, facts in SEVERITIES.items():
        for bit, name in facts.errors.items():
            masked = bytearray(space)
            masked[0x100 + facts.mask : 0x104 + facts.mask] = (1 << bit).to_bytes(4, "little")
            assert reporting(bytes(masked), severity) == Reporting(enabled=True, masked=(name,))
        assert reporting(bytes(space), severity) == Reporting(enabled=True, masked=())


@pytest.mark.parametrize("space", [b"", bytes(63), b"\xff" * 64])
def test_what_is_no_configuration_space_is_refused(space):
    """A file that is too short, or an absent device's ones, say nothing."""
    with pytest.raises(Unmeasurable, match="no PCI configuration space"):
        reporting(space, "corrected")


@FUZZ
@given(space=st.binary(max_size=600), severity=st.sampled_from(list(SEVERITIES)))
def test_any_bytes_are_a_reporting_or_none(space, severity):
    """Whatever a device shows, also lists that run in a circle, is answered in finite time."""
    with suppress(Unmeasurable):
        assert isinstance(reporting(space, severity), Reporting)


# what an error says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "port", "replays", "said"),
    [
        ({"RxErr": 3}, {}, 0, "host to GPU"),
        ({"BadTLP": 1}, {"Timeout": 1}, 0, "host to GPU"),
        ({}, {"BadTLP": 2}, 0, "GPU to host"),
        ({"Rollover": 1}, {}, 0, "GPU to host"),
        ({}, {}, 5, "GPU to host"),
        ({"RxErr": 1}, {"BadDLLP": 1}, 0, "both directions"),
        ({}, {}, 0, ""),
        ({"NonFatalErr": 2}, {}, 0, ""),
    ],
)
def test_an_error_tells_the_direction_that_is_damaged(card, port, replays, said):
    """What an end received damaged came to it; what it sent again went from it."""
    assert aer.direction(card, port, replays) == said


def test_all_hops_up_to_the_root_are_found(site):
    """The chain ends at the port whose own folder lies in no port's."""
    assert aer.hops(site, GPU) == (GPU, PORT)


@pytest.mark.parametrize(("text", "address"), [("00000000:C1:00.0", GPU), ("0000:c1:00.0", GPU)])
def test_addresses_have_one_form(text, address):
    """NVML's eight digits and capitals are sysfs' four and small letters."""
    assert aer.normal_address(text) == address


@pytest.mark.parametrize("parse", [aer.parse_aer, aer.normal_address])
@FUZZ
@given(text=st.one_of(st.text(), st.sampled_from(["RxErr 1\nTOTAL_ERR_COR 0", "0000:00:00.0"])))
def test_any_text_is_a_reading_or_no_measurement(parse, text):
    """A parser answers with something or says why not, and never with nothing."""
    with suppress(Unmeasurable):
        assert parse(text)


@FUZZ
@given(messages=st.lists(st.text(), max_size=4), extra=st.integers(0, 3))
def test_any_log_is_counted(messages, extra):
    """Whatever else the log holds, each error in it is counted."""
    assert aer.logged_errors([*messages, *[CORRECTED_68[1]] * extra], "corrected", (GPU, PORT)) >= extra


# links -----------------------------------------------------------------------------------------------


def links(counting, below):
    """Return both ends of every link above the card."""
    site = Site(Tree(below, counting), None, "gpu0", {}, lambda _name, _text: "digest")
    return aer.links(site, aer.hops(site, CARD))


SWITCHED = {CARD: DOWN, AUDIO: DOWN, DOWN: UP, UP: ROOT, ROOT: "", "0000:c2:05.0": UP, "0000:c4:00.0": "0000:c2:05.0"}


def test_behind_a_switch_both_links_are_the_cards():
    """The card to the switch, and the switch to the root port; between the switch's ports is no link."""
    assert links({CARD, DOWN, UP, ROOT}, SWITCHED) == ((CARD, DOWN), (UP, ROOT))


def test_a_cards_other_functions_count_for_its_link():
    """Some boards tell a link's errors by the card's sound; a function that counts nothing adds nothing."""
    assert links({CARD, AUDIO, DOWN}, SWITCHED)[0] == (CARD, DOWN, AUDIO)
    assert links({CARD, AUDIO, ROOT}, {CARD: ROOT, AUDIO: ROOT, ROOT: ""}) == ((CARD, ROOT, AUDIO),)


def test_a_port_that_is_its_own_is_followed_once():
    """A tree that bends into a loop ends."""
    assert links({CARD}, {CARD: DOWN, DOWN: CARD}) == ((CARD, DOWN),)
