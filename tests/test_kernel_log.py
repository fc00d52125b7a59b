"""The kernel log counts where it is this boot's, whole, and goes on where it was left; anything else is none."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.kernel import log as kernel_log
from pytest_gpuaccept.probes.kernel.log import KernelLog, Mark, Record, log_of, new_records, parse_journal
from pytest_gpuaccept.sim.scenario import Scenario
from pytest_gpuaccept.sim.world import SimWorld
from pytest_gpuaccept.world import Completed

FUZZ = settings(deadline=None, database=None)
BOOT = "0123abcd-0123-4bcd-8123-0123456789ab"
FIRST = Record(1, 5, "Linux version 6.8.0")


def entry(message, us="7", **more):
    """Return one line of the journal."""
    own = {"_BOOT_ID": BOOT.replace("-", ""), "__MONOTONIC_TIMESTAMP": us, "MESSAGE": message}
    return json.dumps({**own, **more})


def messages(log):
    """Return what the records say."""
    return [record.message for record in log.records]


# the journal ----------------------------------------------------------------------------------------


def test_every_form_of_a_journal_message_is_read():
    """Bytes that are no UTF-8, several fields of one name and null are all messages; other boots are left out."""
    lines = [entry("Linux version 6"), entry([255, 65]), entry(["a", "b"]), entry(None), entry("old", _BOOT_ID="ff")]
    log = parse_journal("\n".join(lines), BOOT)
    assert (messages(log), log.whole) == (["Linux version 6", "\ufffdA", "a\nb", ""], True)


def test_crlf_and_blank_lines_change_nothing():
    """Line ends of another system and blank lines between records are no records."""
    assert messages(parse_journal(f"{entry('a')}\r\n\r\n  \n{entry('b')}\r\n", BOOT)) == ["a", "b"]


def test_the_kernels_own_clock_and_device_are_taken():
    """A record has the time at which the kernel wrote it, its priority, and the PCI device it is of."""
    line = entry("x", us="9000", _SOURCE_MONOTONIC_TIMESTAMP="4000", PRIORITY="3", _KERNEL_DEVICE="+pci:0000:c1:00.0")
    assert parse_journal(line, BOOT).records == (Record(4000, 3, "x", "0000:c1:00.0"),)


def test_what_a_program_writes_is_not_the_kernels():
    """A program can write `NVRM: Xid` into the kernel's log; its record has another facility and does not count."""
    lines = [entry("Linux version 6"), entry("NVRM: Xid (PCI:0000:c1:00): 79", SYSLOG_FACILITY="1")]
    assert messages(parse_journal("\n".join(lines), BOOT)) == ["Linux version 6"]


def test_the_journals_own_words_count_only_when_records_were_lost():
    """Of what journald itself says only that it missed kernel messages matters."""
    lines = [entry("Journal started", _TRANSPORT="driver"), entry("Missed 12 kernel messages", _TRANSPORT="driver")]
    assert messages(parse_journal("\n".join(lines), BOOT)) == ["Missed 12 kernel messages"]


@pytest.mark.parametrize(
    "line", ["-- No entries --", "{}", "[]", '"x"', entry("m", us=None), entry("m", us="-1"), "[" * 9999]
)
def test_what_is_no_journal_is_refused(line):
    """A line that is no record makes the log unreadable, not shorter."""
    with pytest.raises(Unmeasurable, match="no record"):
        parse_journal(f"{entry('Linux version 6')}\n{line}", BOOT)


@pytest.mark.parametrize("text", ["", entry("old", _BOOT_ID="ff")])
def test_no_record_of_this_boot_is_no_log(text):
    """Nothing, or another boot's records, says nothing of this one, and how to get at it."""
    with pytest.raises(Unmeasurable, match="group adm"):
        parse_journal(text, BOOT)


# dmesg ----------------------------------------------------------------------------------------------


def test_dmesg_in_json_is_read():
    """The kernel's own buffer, as newer dmesg prints it, is a log too."""
    lines = [{"fac": "kern", "pri": 5, "time": 0.0, "msg": "Linux version 6"}, {"pri": 3, "time": 1.5, "msg": "x"}]
    log = kernel_log.parse_dmesg(json.dumps({"dmesg": lines}))
    assert (log.records, log.whole) == ((Record(0, 5, "Linux version 6"), Record(1_500_000, 3, "x")), True)


def test_raw_dmesg_is_read_with_lines_that_go_on():
    """Older dmesg prints text; a line without a head belongs to the one before."""
    log = kernel_log.parse_raw("<5>[    0.000000] Linux version 6\n<3>[   12.000001] one\ntwo\n")
    assert log.records[1] == Record(12_000_001, 3, "one\ntwo")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"dmesg": [1]}', '{"dmesg": [{"time": "x", "pri": 1, "msg": ""}]}', "rubbish"]
)
def test_what_is_no_dmesg_is_refused(text):
    """Anything else is no log, in both forms."""
    with pytest.raises(Unmeasurable):
        kernel_log.parse_dmesg(text)
    with pytest.raises(Unmeasurable):
        kernel_log.parse_raw(text)


class Tools:
    """A world whose commands answer what the test says."""

    def __init__(self, **answers):
        self.answers = answers

    def read(self, _path):
        """Return the boot's id."""
        return BOOT

    def command(self, argv, *, timeout):
        """Answer by the tool's name, or by its first option."""
        status, out, err = self.answers.get(argv[-1].lstrip("-"), self.answers.get(argv[0], (1, "", "unknown option")))
        return Completed(tuple(argv), status, out, err, 0.1)

    class clock:  # noqa: N801 - an attribute
        """A clock that stands."""

        monotonic = staticmethod(lambda: 100.0)


def read(**answers):
    """Read the log by tools that answer so."""
    return kernel_log.read_log(Site(Tools(**answers), None, "host", {}, lambda _name, _text: ""))


def test_without_a_journal_the_kernels_buffer_is_asked():
    """A journal that shows nothing is not believed; dmesg is asked, in JSON and else as text."""
    told = json.dumps({"dmesg": [{"pri": 5, "time": 0.0, "msg": "Linux version 6"}]})
    assert read(journalctl=(0, "", ""), json=(0, told, "")).source == "dmesg"
    raw = "<5>[    0.000000] Linux version 6\n"
    assert read(journalctl=(1, "", "no"), json=(1, "", "dmesg: unrecognized option"), raw=(0, raw, "")).whole


def test_who_may_see_neither_is_told_why():
    """The reason names both tools and the group to join."""
    with pytest.raises(Unmeasurable, match=r"group adm.*Operation not permitted"):
        read(journalctl=(0, "", ""), json=(1, "", "dmesg: read kernel buffer failed: Operation not permitted"))


# what is new ----------------------------------------------------------------------------------------


def test_new_is_what_stands_behind_the_mark():
    """The records behind the last one of the start are new, whatever their times say."""
    start = log_of((FIRST, Record(50, 6, "a")), "journalctl")
    end = log_of((*start.records, Record(40, 6, "b"), Record(60, 6, "c")), "journalctl")
    fresh, lacking = new_records(start.forgotten, end)
    assert ([record.message for record in fresh], lacking) == (["b", "c"], ())


def test_a_log_that_lost_its_beginning_is_followed_by_its_mark():
    """A buffer that wrapped may still hold the mark; what is behind it is new, and the log is no whole one."""
    start = log_of((FIRST, Record(50, 6, "a")), "dmesg")
    fresh, lacking = new_records(start, log_of((Record(50, 6, "a"), Record(60, 6, "b")), "dmesg"))
    assert ([record.message for record in fresh], len(lacking)) == (["b"], 1)


def test_a_log_that_lost_its_mark_may_have_lost_more():
    """Without the record at which the run began, what came later is known by time, and not known to be all."""
    start = log_of((FIRST, Record(50, 6, "a")), "dmesg")
    fresh, lacking = new_records(start, log_of((Record(70, 6, "b"),), "dmesg"))
    assert [record.message for record in fresh] == ["b"]
    assert "no longer holds" in " ".join(lacking)


def test_an_unread_end_leaves_nothing_and_says_why():
    """A log that cannot be read at one end has no new records, for a reason."""
    log = log_of((FIRST,), "dmesg")
    for start, end in ((log, Unmeasurable("gone")), (Unmeasurable("gone"), log)):
        assert new_records(start, end) == ((), ("gone",))


def test_records_that_were_lost_meanwhile_are_named():
    """The journal's admission that it missed records takes the proof away."""
    start = log_of((FIRST,), "journalctl")
    _, lacking = new_records(start, log_of((FIRST, Record(9, 6, "Missed 3 kernel messages")), "journalctl"))
    assert "Missed 3" in lacking[0]


# reading on -----------------------------------------------------------------------------------------


@pytest.fixture
def site(profile):
    """Return what a probe of a simulated host is given."""
    return Site(SimWorld(profile, Scenario("healthy")), profile, "host", {}, lambda _name, _text: "digest")


def test_a_log_is_read_on_from_where_it_ended(site):
    """A second reading asks for the rest only, and gives all records in order."""
    first = kernel_log.read_log(site)
    site.world.machine.say("something new")
    asked = []
    command = site.world.command
    site.world.command = lambda argv, **more: asked.append(argv) or command(argv, **more)
    second = kernel_log.read_log(site)
    assert [*messages(first), "something new"] == messages(second)
    assert any(word.startswith("--after-cursor=") for word in asked[0])
    assert kernel_log.read_log(site) == second


def test_just_behind_a_load_the_log_is_waited_for(site):
    """What a load caused is written down some seconds later, so a reading right behind it waits."""
    site.world.clock.sleep(100)
    site.memory[kernel_log.LOADED] = site.world.clock.monotonic() - 1.0
    began = site.world.clock.monotonic()
    kernel_log.read_log(site)
    assert site.world.clock.monotonic() - began == pytest.approx(kernel_log.SETTLE_S - 1.0, abs=0.3)


LINES = st.one_of(st.text(), st.sampled_from([entry("x"), entry("Linux version 6"), "<5>[    0.000000] a", "{", "[]"]))


@pytest.mark.parametrize(
    "parse", [lambda text: parse_journal(text, BOOT), kernel_log.parse_dmesg, kernel_log.parse_raw],
    ids=["journal", "dmesg", "raw"],
)  # fmt: skip
@FUZZ
@given(text=st.lists(LINES, max_size=6).map("\n".join))
def test_any_text_is_a_log_or_none(parse, text):
    """Whatever a tool prints is a log with records, or no log; never an empty one."""
    with suppress(Unmeasurable):
        assert parse(text).records


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), min_size=1), st.lists(st.sampled_from("abc")))
def test_the_mark_is_found_wherever_the_log_goes_on(old, new):
    """Whatever stands before and behind the mark, behind it is what is new."""
    first = log_of(tuple(Record(us, 6, text) for us, text in old), "journalctl")
    later = tuple(Record(9, 6, text) for text in new)
    fresh, _ = new_records(first.forgotten, log_of((*first.records, *later), "journalctl"))
    assert fresh == later


def test_a_forgotten_log_still_knows_its_end():
    """Without its records a log keeps its mark, so that a run's start is small."""
    log = log_of((FIRST, Record(50, 6, "a")), "journalctl").forgotten
    assert log == KernelLog((), whole=True, mark=Mark(2, 50, "a"))
