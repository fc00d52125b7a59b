"""An Xid is known by its line and by its meaning; one of our own GPUs counts, whatever a fleet would ignore."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.probes.kernel import xid

GPU, OTHER = "0000:c1:00.0", "0000:41:00.0"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("NVRM: Xid (PCI:0000:c1:00): 79, pid=1, name=python3", 79),
        ("NVRM: Xid (0000:c1:00): 14, Channel 00000001", 14),
        ("NVRM: Xid (PCI:00000000:C1:00): 145, RLW_REMAP Nonfatal", 145),
        ("NVRM: Xid (PCI:0000:c1:00.0): 31, pid=7", 31),
        ("[  12.3] NVRM: Xid (PCI:0000:c1:00): 999, what nobody knows", 999),
    ],
)
def test_xid_lines_are_understood(line, code):
    """With and without PCI:, in both ways of writing the domain, an Xid is ascribed to its GPU."""
    seen = xid.of_gpu([line], GPU, ())
    assert (seen.count, seen.note.split(" (")[0]) == (1, f"Xid {code}")
    assert xid.of_gpu([line], OTHER, ()).count == 0


@pytest.mark.parametrize(
    "lines",
    [
        ["NVRM: GPU 0000:c1:00.0: GPU has fallen off the bus."],
        ["NVRM: The NVIDIA GPU 0000:c1:00.0\nNVRM: (PCI ID: 10de:2684) installed in it has\nNVRM: fallen off the bus."],
        ["NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
         "NVRM: GPU 0000:c1:00.0: GPU has fallen off the bus."],
        ["NVRM: GPU 0000:c1:00.0: GPU has fallen off the bus.",
         "NVRM: Xid (PCI:0000:c1:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."],
    ],
)  # fmt: skip
def test_a_fall_off_the_bus_is_one_xid_79(lines):
    """The driver's words count once, with the word Xid and without it, and the first step is named."""
    seen = xid.of_gpu(lines, GPU, ())
    assert (seen.count, seen.lacking) == (1, ())
    assert seen.note.startswith("Xid 79 (fatal: the card has fallen off the bus): Look for power")


def test_an_xid_that_names_no_gpu_spoils_every_none_seen():
    """A line that nobody can ascribe is quoted as what is missing."""
    seen = xid.of_gpu(["NVRM: Xid: 999, whatever"], GPU, ())
    assert seen.count == 0
    assert "NVRM: Xid: 999" in seen.lacking[0]


@pytest.mark.parametrize("line", ["app[7]: Xid 79 is in my text", "NVRM: loading NVIDIA UNIX Open Kernel Module", ""])
def test_the_word_alone_is_no_xid(line):
    """What is not the driver's own line is none."""
    assert xid.of_gpu([line], GPU, ()) == xid.of_gpu([], GPU, ())


@pytest.mark.parametrize("code", [45, 106, 107, 154])
def test_a_note_is_told_and_not_counted(code):
    """Codes that say nothing of a defect are recorded only."""
    seen = xid.of_gpu([f"NVRM: Xid (PCI:0000:c1:00): {code}, x"], GPU, ())
    assert (seen.count, f"Xid {code} (note" in seen.note) == (0, True)


@pytest.mark.parametrize("code", [8, 13, 31, 43, 48, 62, 63, 74, 79, 92, 94, 109, 119, 140, 168, 172])
def test_what_a_fleet_may_ignore_counts_on_a_new_card(code):
    """Fatal and suspect codes count alike: the load is known to be good."""
    assert xid.known(code).kind in ("fatal", "suspect")
    assert xid.of_gpu([f"NVRM: Xid (PCI:0000:c1:00): {code}, x"], GPU, ()).count == 1


def test_a_code_that_nobody_knows_counts():
    """An unknown code is a defect until somebody has looked it up."""
    assert xid.known(999).kind == "unknown"
    assert "NVIDIA's list" in xid.of_gpu(["NVRM: Xid (PCI:0000:c1:00): 999, x"], GPU, ()).note


def test_every_entry_of_the_catalogue_is_whole():
    """Each code has a class that is known, a meaning and a remedy."""
    assert {entry.kind for entry in xid.catalogue().values()} == {"fatal", "suspect", "note"}
    assert all(entry.meaning and entry.remedy for entry in xid.catalogue().values())
    assert len(xid.catalogue()) > 70


@given(messages=st.lists(st.one_of(st.text(), st.just("NVRM: Xid")), max_size=4), extra=st.integers(0, 3))
def test_any_log_is_counted(messages, extra):
    """Whatever else the log holds, each Xid in it is counted."""
    assert xid.of_gpu([*messages, *["NVRM: Xid (PCI:0000:c1:00): 13, pid=1"] * extra], GPU, ()).count >= extra
