"""The plugin as its users meet it: options, items, verdicts, exit status, evidence."""

import json
import os
import pty
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.session import _interpreter

SUITE = """
import pytest

@pytest.mark.spec("lab.volts")
def test_volts(host, accept):
    accept(host.probe("lab.meter"))

@pytest.mark.spec("lab.errors")
def test_errors(host, accept):
    accept(host.probe("lab.meter"))
"""
CONFTEST = """
from pytest_gpuaccept import Metric, Probe

VOLTS = Metric("lab.volts", "Supply", "W", "host")
ERRORS = Metric("lab.errors", "Errors seen", "count", "host", none_seen=True)

def measure(site):
    {body}
    yield site.measured(VOLTS, {volts})
    yield site.measured(ERRORS, 0, proof="counter read")

def pytest_gpuaccept_probes():
    return [Probe("lab.meter", "{phase}", "host", (VOLTS, ERRORS), measure, load={load})]
"""
PROFILE = """
title = "a lab"
[line."lab.volts"]
min = 100
guard = 5
unit = "W"
source = "order 1"
{volts}
[line."lab.errors"]
max = 0
unit = "count"
source = "order 2"
{errors}
"""


@pytest.fixture
def lab(pytester):
    """A machine with one meter: write its suite, and run pytest on it."""

    def make(suite=SUITE, *args, volts=120, body="pass", phase="idle", load=False, profile=("", ""), run=True):
        pytester.makeini("[pytest]\naddopts = -p no:hypothesispytest\n")
        pytester.makepyfile(test_lab=suite)
        pytester.makeconftest(CONFTEST.format(volts=volts, body=body, phase=phase, load=load))
        pytester.mkdir("thresholds").joinpath("lab.toml").write_text(
            PROFILE.format(volts=profile[0], errors=profile[1])
        )
        return pytester.runpytest("--hw=lab", "--hw-evidence=ev", *args) if run else pytester

    return make


def verdicts(pytester, folder="ev"):
    """Return {line: verdict} of the evidence in a folder, and that it is intact."""
    bundle = read_bundle(pytester.path / folder)
    assert bundle.flaws == ()
    return {v.line: v.verdict for v in bundle.verdicts}


def decision(pytester, folder="ev"):
    """Return the decision in the manifest."""
    return json.loads((pytester.path / folder / "manifest.json").read_text())["decision"]


def test_a_good_machine_is_accepted(lab, pytester):
    """All lines pass: ACCEPTED, exit status 0, evidence and report are there, the decision comes last."""
    result = lab()
    assert result.ret == 0
    assert decision(pytester) == "ACCEPTED"
    assert verdicts(pytester) == {"lab.volts": "PASS", "lab.errors": "PASS"}
    assert result.outlines[-1].startswith("ACCEPTED  report: ")
    assert (pytester.path / "ev" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("volts", "profile", "word", "status", "outcomes"),
    [
        (99, ("", ""), "REJECTED", 1, {"failed": 1, "passed": 1}),
        (101, ("", ""), "ACCEPTED WITH REMARKS", 0, {"passed": 1}),
        ("float('nan')", ("", ""), "INCOMPLETE", 10, {"failed": 1, "passed": 1}),
        (99, ('severity = "advisory"', ""), "ACCEPTED WITH REMARKS", 0, {"passed": 1}),
        (99, ('not_applicable = "no such part"', ""), "ACCEPTED WITH REMARKS", 0, {"passed": 1}),
    ],
)
def test_an_item_fails_exactly_when_it_stands_in_the_way(volts, profile, word, status, outcomes, lab, pytester):
    """FAIL and ERROR of a required line fail the item; MARGINAL, REMARK and N/A do not."""
    result = lab(volts=volts, profile=profile)
    assert (decision(pytester), result.ret) == (word, status)
    counts = result.parseoutcomes()
    assert {key: counts.get(key) for key in outcomes} == outcomes
    assert ("failed" in counts) == ("failed" in outcomes)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("assert 0, 'before'", "AssertionError: before"),
        ("pass", "called accept() 0 times"),
        ("accept(host.probe('lab.meter')); accept(host.probe('lab.meter'))", "called accept() 2 times"),
        ("accept(host.probe('lab.meter')); 1 / 0", "ZeroDivisionError"),
        ("accept(host.inventory())", "does not decide lab.volts"),
        ("accept(host.probe('lab.mitre'))", "no probe 'lab.mitre'"),
        ("raise SystemError('odd')", "SystemError: odd"),
        ("pytest.fail('by hand')", "by hand"),
        ("raise BaseException('worse')", "worse"),
    ],
)
def test_a_broken_test_is_an_error_and_never_a_pass(body, reason, lab, pytester):
    """Whatever happens to the test, its line has one verdict: ERROR with what happened."""
    suite = SUITE.replace('accept(host.probe("lab.meter"))', body, 1)
    result = lab(suite)
    assert verdicts(pytester) == {"lab.volts": "ERROR", "lab.errors": "PASS"}
    assert (decision(pytester), result.ret) == ("INCOMPLETE", 10)
    assert reason in read_bundle(pytester.path / "ev").verdicts[0].reason


@pytest.mark.parametrize("body", ["raise RuntimeError('dead')", "raise BaseException('dead')", "return"])
def test_a_broken_probe_is_an_error_on_each_of_its_lines(body, lab, pytester):
    """A probe that fails, even badly, leaves ERROR on its lines and a whole bundle."""
    lab(body=f"{body}")
    assert verdicts(pytester) == {"lab.volts": "ERROR", "lab.errors": "ERROR"}


def test_a_skipped_line_is_not_run(lab, pytester):
    """Skipping the test of a required line is no way to acceptance."""
    result = lab(SUITE.replace("def test_volts", "@pytest.mark.skip(reason='no time')\ndef test_volts"))
    assert verdicts(pytester)["lab.volts"] == "NOT_RUN"
    assert (decision(pytester), result.ret) == ("INCOMPLETE", 10)


@pytest.mark.parametrize("after", ["pytest.skip('later')", "pytest.xfail('later')", "1 / 0", "raise KeyError('x')"])
def test_a_proven_failure_stays_proven(after, lab, pytester):
    """Whatever a test does after its line failed, FAIL stands and the machine is rejected."""
    body = f"try:\n        accept(host.probe('lab.meter'))\n    except BaseException:\n        {after}"
    result = lab(SUITE.replace('accept(host.probe("lab.meter"))', body, 1), volts=1)
    assert verdicts(pytester)["lab.volts"] == "FAIL"
    assert (decision(pytester), result.ret) == ("REJECTED", 1)


OWN = "\ndef test_mine(host):\n    assert 0\n"


@pytest.mark.parametrize(
    ("suite", "args"),
    [
        (SUITE + OWN, ("-k", "not mine")),
        (SUITE + OWN, ("--deselect", "test_lab.py::test_mine")),
        (SUITE + OWN, ("test_lab.py::test_volts", "test_lab.py::test_errors")),
        (SUITE + "\ndef test_end():\n    pytest.exit('enough', returncode=0)\n" + OWN, ()),
    ],
)
def test_leaving_out_a_test_of_ones_own_is_no_way_to_acceptance(suite, args, lab, pytester):
    """With every line passed, a run that left other tests out is INCOMPLETE all the same."""
    result = lab(suite, *args)
    assert set(verdicts(pytester).values()) == {"PASS"}
    assert (decision(pytester), result.ret) == ("INCOMPLETE", 10)


def test_a_file_that_cannot_be_collected_is_missed_even_when_the_rest_runs(lab, pytester):
    """--continue-on-collection-errors decides every line, and the run is INCOMPLETE."""
    pytester.makepyfile(test_broken="import no_such_module")
    lab(SUITE, "--continue-on-collection-errors")
    assert set(verdicts(pytester).values()) == {"PASS"}
    assert decision(pytester) == "INCOMPLETE"


def test_a_skipped_test_of_ones_own_is_a_remark(lab, pytester):
    """What was skipped, or expected to fail, is said."""
    lab(SUITE + "\n@pytest.mark.xfail\ndef test_mine():\n    assert 0\n\n@pytest.mark.skip\ndef test_other(): pass\n")
    assert decision(pytester) == "ACCEPTED WITH REMARKS"


def test_a_failed_setup_or_teardown_is_an_error(lab, pytester):
    """A fixture that breaks around a line takes its verdict with it."""
    fixtures = "\n@pytest.fixture\ndef bad():\n    {}\n"
    for name, body in (("setup", "1 / 0"), ("teardown", "yield\n    1 / 0")):
        suite = SUITE.replace("def test_volts(host,", "def test_volts(bad, host,") + fixtures.format(body)
        pytester.makepyfile(test_lab=suite)
        if name == "setup":
            lab(suite)
        else:
            pytester.runpytest("--hw=lab", "--hw-evidence=ev2")
    assert verdicts(pytester)["lab.volts"] == verdicts(pytester, "ev2")["lab.volts"] == "ERROR"


@pytest.mark.parametrize("args", [("-k", "volts"), ("-m", "not spec"), ("--deselect", "test_lab.py::test_errors")])
def test_a_part_of_the_suite_is_never_accepted(args, lab, pytester):
    """What was deselected is NOT_RUN, and the run INCOMPLETE."""
    result = lab(SUITE, *args)
    assert verdicts(pytester)["lab.errors"] == "NOT_RUN"
    assert (decision(pytester), result.ret) == ("INCOMPLETE", 10)


def test_stopping_at_the_first_failure_keeps_the_verdict(lab, pytester):
    """With -x the failing line rejects and the rest is NOT_RUN."""
    result = lab(SUITE, "-x", volts=1)
    assert verdicts(pytester) == {"lab.volts": "FAIL", "lab.errors": "NOT_RUN"}
    assert (decision(pytester), result.ret) == ("REJECTED", 1)


def test_last_failed_is_a_part_of_the_suite(lab, pytester):
    """--lf runs the failed items only and so cannot accept."""
    lab(volts=1)
    pytester.makeconftest(CONFTEST.format(volts=120, body="pass", phase="idle", load=False))
    result = pytester.runpytest("--hw=lab", "--hw-evidence=ev2", "--lf")
    assert verdicts(pytester, "ev2") == {"lab.volts": "PASS", "lab.errors": "NOT_RUN"}
    assert result.ret == 10


def test_collecting_only_measures_nothing(lab, pytester):
    """--collect-only shows the items with their stable ids and leaves no evidence."""
    result = lab(SUITE, "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_lab.py::test_volts[[]lab.volts-host[]]"])
    assert not (pytester.path / "ev").exists()


def test_a_failed_test_of_ones_own_rejects(lab, pytester):
    """A test that decides no line still has to pass; one that passes changes nothing."""
    own = "\ndef test_mine(host):\n    assert host.probe('lab.meter').volts.value {} 100\n"
    assert lab(SUITE + own.format(">")).ret == 0
    assert decision(pytester) == "ACCEPTED"
    pytester.makepyfile(test_lab=SUITE + own.format("<"))
    assert pytester.runpytest("--hw=lab", "--hw-evidence=ev2").ret == 1
    assert decision(pytester, "ev2") == "REJECTED"
    assert "decides no line, so it rejects" in (pytester.path / "ev2" / "report.html").read_text()


def test_a_test_file_that_does_not_load_leaves_its_lines_open(lab, pytester):
    """A collection error is INCOMPLETE, with evidence that says so."""
    pytester.makepyfile(test_broken="import no_such_module")
    result = lab()
    assert (decision(pytester), result.ret) == ("INCOMPLETE", 10)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--hw=nope",), "no profile 'nope'"),
        (("--hw=lab", "--hw-replay=nope"), "not an evidence bundle"),
        (("--hw=lab", "--hw-replay=a", "--hw-replay=b"), "two worlds"),
        (("--hw=lab", "--hw-replay=a", "--hw-sim"), "two worlds"),
        (("--hw=lab", "--hw-sim=,fault=gpu0.slow"), "this machine has no gpu0"),
        (("--hw=lab", "--hw-sim=case-studdy"), "did you mean 'case-study'?"),
        (("--hw=lab", "--hw-sim=healthy,fault=gpu0.pcie.width:8"), "this machine has no gpu0"),
        (("--hw-replay=a",), "--hw-replay needs --hw=PROFILE"),
        (("--hw-effort=quick",), "--hw-effort needs --hw=PROFILE"),
        (("--hw=lab", "--hw-evidence="), "--hw-evidence: names no folder"),
        (("--hw=lab", "--hw-sim=healthy,seed=1,seed=2"), "seed is given twice"),
        (("--hw=lab", "-n2"), "-n works with --hw-replay only"),
        (("--hw=lab", "--tx", "2*popen", "--dist=load"), "-n works with --hw-replay only"),
        (("--hw=",), "no profile ''"),
        (("--hw=lab", "--hw-effort=slow"), "invalid choice"),
        (("--hw=lab", "--hw-evidence=test_lab.py"), "cannot be written"),
    ],
)
def test_bad_options_are_usage_errors(args, words, lab, pytester):
    """Exit status 4, what is wrong, and no traceback."""
    lab(run=False)
    result = pytester.runpytest(*args)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4
    assert words in text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        (SUITE.replace('"lab.volts"', '"lab.vlots"'), ("'lab.vlots'", "lab.volts")),
        (SUITE.replace('spec("lab.volts")', "spec()"), ("takes line ids",)),
        (SUITE.replace('spec("lab.volts")', "spec(line='lab.volts')"), ("takes line ids",)),
        (SUITE.replace('"lab.errors"', '"lab.*"'), ("decided by two tests", "test_volts", "test_errors")),
    ],
)
def test_a_test_that_names_lines_wrongly_is_a_usage_error(suite, words, lab):
    """An unknown line, an empty marker, or two tests for one line end with exit status 4."""
    result = lab(suite)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4
    assert all(word in text for word in words), text


def test_a_profile_with_mistakes_is_a_usage_error(lab):
    """Lint runs before anything is collected, and names file, line and key."""
    result = lab(profile=("mni = 3", ""))
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*thresholds/lab.toml: line lab.volts: key mni: unknown key*"])


def test_a_broken_recording_is_a_usage_error(lab, pytester):
    """A bundle in which a byte was changed is not judged."""
    lab()
    file = pytester.path / "ev" / "evidence.jsonl"
    file.write_text(file.read_text().replace("120", "999", 1))
    result = pytester.runpytest("--hw=lab", "--hw-replay=ev", "--hw-evidence=ev2")
    assert result.ret == 4
    assert "not intact" in result.stderr.str()


@pytest.mark.parametrize("volts", [120, 101, 99])
def test_a_replay_gives_the_same_verdicts(volts, lab, pytester):
    """Replaying a live run judges every line as the run did, and is stamped as a replay."""
    lab(volts=volts)
    pytester.runpytest("--hw=lab", "--hw-replay=ev", "--hw-evidence=ev2")
    first, second = (pytester.path / f / "verdicts.jsonl" for f in ("ev", "ev2"))
    assert first.read_bytes() == second.read_bytes()
    assert decision(pytester, "ev2") == f"REPLAYED {decision(pytester)}"


def test_replay_works_in_parallel(lab, pytester):
    """Under -n the controller keeps the evidence; verdicts are those of a serial replay."""
    lab()
    result = pytester.runpytest_subprocess("--hw=lab", "--hw-replay=ev", "--hw-evidence=ev2", "-n2")
    assert result.ret == 0
    assert verdicts(pytester, "ev2") == verdicts(pytester)


def test_waivers_hold_until_their_date(lab, pytester):
    """A waiver accepts a failure by name; an expired one is void and printed."""
    for year, word, status in ((2999, "ACCEPTED WITH REMARKS", 0), (2020, "REJECTED", 1)):
        waiver = (
            f'[[waiver]]\nline = "lab.volts"\ndevice = "host"\nreason = "agreed"\nwho = "J. Roe"\nuntil = {year}-01-01'
        )
        if year == 2999:
            lab(volts=99, run=False)
        (pytester.path / "thresholds" / "lab.waivers.toml").write_text(waiver)
        result = pytester.runpytest("--hw=lab", f"--hw-evidence=ev{year}")
        assert (decision(pytester, f"ev{year}"), result.ret) == (word, status)
        assert "J. Roe" in (pytester.path / f"ev{year}" / "report.html").read_text()
    assert "VOID" in result.stdout.str()


def test_an_attestation_decides_what_no_sensor_shows(lab, pytester):
    """What a named person looked at is judged, with provenance attested; what a probe measures is not theirs to say."""
    suite = '\n@pytest.mark.spec("host.psu")\ndef test_psu(host, accept):\n    accept(host.attested())\n'
    lab(SUITE + suite, run=False)
    profile = pytester.path / "thresholds" / "lab.toml"
    profile.write_text(profile.read_text() + '[line."host.psu"]\nequals = "dual"\nunit = "text"\nsource = "order"\n')
    assert pytester.runpytest("--hw=lab", "--hw-evidence=ev").ret == 10
    entry = '[[attested]]\nline = "{}"\ndevice = "host"\nvalue = "dual"\nwho = "J. Roe"\nwhen = 2026-11-23\n'
    attested = pytester.path / "thresholds" / "lab.attested.toml"
    attested.write_text(entry.format("host.psu") + 'looked_at = "the label"\n')
    assert pytester.runpytest("--hw=lab", "--hw-evidence=ev2").ret == 0
    verdict = next(v for v in read_bundle(pytester.path / "ev2").verdicts if v.line == "host.psu")
    assert (verdict.verdict, verdict.provenance, verdict.value) == ("PASS", "attested", "dual")
    attested.write_text(entry.format("lab.volts") + 'looked_at = "the label"\n')
    refused = pytester.runpytest("--hw=lab", "--hw-evidence=ev3")
    assert refused.ret == 4
    assert "nobody can attest it" in refused.stderr.str()


def test_a_quick_run_is_at_best_accepted_with_remarks(lab, pytester):
    """A shortened run says so in its decision."""
    result = lab(SUITE, "--hw-effort=quick")
    assert decision(pytester) == "ACCEPTED WITH REMARKS"
    assert "quick effort: a shortened run" in result.stdout.str()
    assert "quick effort: a shortened run" in (pytester.path / "ev" / "report.html").read_text()


def test_loads_are_held_back_when_the_run_cannot_be_decided(lab, pytester):
    """With a required line that cannot be measured no load starts, unless told to go on."""
    suite = SUITE + '\n@pytest.mark.spec("gpu.xid")\ndef test_xid(gpu, accept):\n    accept(gpu.events())\n'
    lab(suite, load=True, run=False)
    (pytester.path / "thresholds" / "lab.toml").write_text(
        PROFILE.format(volts="", errors="").replace('title = "a lab"', 'title = "a lab"\ncard = "rtx4090"\ngpus = 1')
        + '\n[line."gpu.xid"]\nmax = 0\nunit = "count"\nsource = "s"\n'
        '[line."gpu.gemm.efficiency"]\nmin = 0.5\nunit = "ratio"\nsource = "s"\n'
        '[line."gpu.copy.device"]\nmin = 800\nunit = "GB/s"\nsource = "s"\n'
    )
    held = pytester.runpytest("--hw=lab", "--hw-evidence=ev")
    assert verdicts(pytester)["lab.volts"] == "NOT_RUN"
    assert verdicts(pytester)["gpu.xid"] == "ERROR"
    held.stdout.fnmatch_lines(["*no load is started*", "*no NVIDIA driver*--hw-sim*--hw-replay*"])
    pytester.runpytest("--hw=lab", "--hw-evidence=ev2", "--hw-go-on")
    assert verdicts(pytester, "ev2")["lab.volts"] == "PASS"
    assert (held.ret, decision(pytester, "ev2")) == (10, "INCOMPLETE")


def test_items_run_in_the_order_of_the_phases(lab, pytester):
    """Whatever the order in the file, inventory comes before loads and events last."""
    suite = """
import pytest

@pytest.mark.spec("lab.*")
def test_late(host, accept):
    accept(host.probe("lab.meter"))

@pytest.mark.spec("host.*")
def test_early(host, accept):
    accept(host.inventory())
"""
    lab(suite, phase="final", run=False)
    profile = pytester.path / "thresholds" / "lab.toml"
    profile.write_text(profile.read_text() + '[line."host.cpu.threads"]\nmin = 1\nunit = "count"\nsource = "s"\n')
    result = pytester.runpytest("--hw=lab", "--hw-evidence=ev", "-v")
    order = [line.split("::")[1].split("[")[0] for line in result.outlines if "::" in line and "[" in line]
    assert order == ["test_early", "test_late", "test_late"]


def test_junit_carries_the_verdict(lab, pytester):
    """Each testcase has the verdict's parts as properties."""
    lab(SUITE, "--junitxml=junit.xml", volts=101)
    case = ET.parse(pytester.path / "junit.xml").find(".//testcase[@name='test_volts[lab.volts-host]']")
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["gpuaccept.verdict"] == "MARGINAL"
    assert properties["gpuaccept.limit"] == ">= 100 W"
    assert properties["gpuaccept.value"] == "101"


def test_pytest_html_shows_the_verdicts_escaped(lab, pytester):
    """pytest-html's page has decision and verdicts as static text, and nothing of a device gets in as markup."""
    text = '[line."host.kernel.release"]\nequals = "<b>order</b>"\nunit = "text"\nsource = "s"\n'
    suite = SUITE + '\n@pytest.mark.spec("host.*")\ndef test_host(host, accept):\n    accept(host.inventory())\n'
    lab(suite, "--html=page.html", "--self-contained-html", profile=("", text))
    page = (pytester.path / "page.html").read_text()
    assert "<h2>REJECTED</h2><table>" in page
    assert "<td>lab.volts</td><td>host</td><td>120 W</td><td>&gt;= 100 W</td>" in page
    assert "<b>order" not in page
    assert "&lt;b&gt;order" in page


def test_a_timeout_is_an_error_and_the_run_goes_on(lab, pytester):
    """pytest-timeout ends a hanging probe; its lines are ERROR and nobody starts it again."""
    result = lab(SUITE, "--timeout=0.5", "--timeout-method=signal", body="__import__('threading').Event().wait()")
    assert result.ret == 10
    assert verdicts(pytester) == {"lab.volts": "ERROR", "lab.errors": "ERROR"}
    assert "Timeout" in read_bundle(pytester.path / "ev").verdicts[0].reason


def test_without_hw_the_plugin_is_inert(lab, pytester):
    """Without --hw its tests are skipped, nothing is shown, and nothing heavy is imported."""
    lab(run=False)
    pytester.makeconftest("")
    pytester.makepyfile(
        test_plain="import sys\ndef test_plain():\n"
        "    assert not {'pydantic', 'rich', 'jinja2', 'pynvml'} & set(sys.modules)\n"
    )
    result = pytester.runpytest_subprocess("test_plain.py", "-p", "no:html", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    assert "gpuaccept" not in result.stdout.str().replace("plugins:", "").split("collected")[1]
    pytester.runpytest("test_lab.py").assert_outcomes(skipped=2)


def test_the_plugin_can_be_switched_off(pytester):
    """-p no:gpuaccept leaves a pytest that does not know --hw."""
    pytester.makepyfile("def test_plain(): pass")
    pytester.runpytest_subprocess("-p", "no:gpuaccept").assert_outcomes(passed=1)
    assert pytester.runpytest_subprocess("-p", "no:gpuaccept", "--hw=host").ret == 4


WAIT = "open('started', 'w').close(); wait = __import__('threading').Event().wait\n    while True: wait(0.01)"


def spawn(pytester, **more):
    """Start pytest on the lab as a process of its own, and return it once the probe has started."""
    argv = [sys.executable, "-m", "pytest", "--hw=lab", "--hw-evidence=ev", "-p", "no:cacheprovider"]
    process = subprocess.Popen(argv, cwd=pytester.path, **more)
    while not (pytester.path / "started").exists() and process.poll() is None:
        os.sched_yield()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_whole_incomplete_bundle(number, lab, pytester):
    """Ctrl-C and SIGTERM close the evidence: intact, INCOMPLETE, with a report."""
    lab(body=WAIT, run=False)
    process = spawn(pytester, stdout=subprocess.PIPE)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 10
    assert set(verdicts(pytester).values()) == {"NOT_RUN"}
    assert decision(pytester) == "INCOMPLETE"
    assert output.splitlines()[-1].startswith("INCOMPLETE  report:")


def test_a_killed_run_reads_as_incomplete(lab, pytester):
    """After SIGKILL the bundle has no end; it says so, renders, and can be judged."""
    lab(body=WAIT, run=False)
    process = spawn(pytester, stdout=subprocess.DEVNULL)
    process.kill()
    process.wait(timeout=30)
    bundle = read_bundle(pytester.path / "ev")
    assert bundle.flaws == ("no end record: the run was cut off and decides nothing",)
    result = pytester.run(sys.executable, "-m", "pytest_gpuaccept", "render", "ev")
    result.stdout.fnmatch_lines(["INCOMPLETE  report: *"])
    assert "not whole" in (pytester.path / "ev" / "report.html").read_text()


def test_losing_the_terminal_does_not_stop_the_run(lab, pytester):
    """After a hangup the run ends by itself, accepted, its output in a file beside the evidence."""
    gate = "open('started', 'w').close()\n    import os\n    while not os.path.exists('go'): os.sched_yield()"
    lab(body=gate, run=False)
    ours, theirs = pty.openpty()
    process = spawn(pytester, stdin=theirs, stdout=theirs, stderr=theirs)
    process.send_signal(signal.SIGHUP)
    while not (pytester.path / "ev" / "terminal.log").exists():
        os.sched_yield()
    os.close(theirs)
    os.close(ours)
    (pytester.path / "go").touch()
    assert process.wait(timeout=30) == 0
    assert decision(pytester) == "ACCEPTED"
    assert "ACCEPTED  report:" in (pytester.path / "ev" / "terminal.log").read_text()


# the delivered interpreter, hidden GPUs, time ---------------------------------------------------------------

TELLS = "__import__('pathlib').Path('python').write_text(str(site.world.python))"


@pytest.mark.parametrize("word", ["no/such/python", "no-such-python", "test_lab.py", "./test_lab.py", ""])
def test_a_delivered_interpreter_that_cannot_be_run_is_bad_input(word, lab, pytester):
    """A path that is not there, an unknown word and a file that is no program end the run before it begins."""
    result = lab(SUITE, f"--hw-python={word}")
    assert result.ret == 4
    result.stderr.fnmatch_lines([f"*--hw-python: {word} is no program that can be run; give the path of a Python*"])
    assert not (pytester.path / "ev").exists()


def test_without_a_word_the_delivered_interpreter_is_this_one(lab, pytester):
    """The loads run where the suite runs."""
    lab(body=TELLS)
    assert (pytester.path / "python").read_text() == sys.executable


@pytest.mark.parametrize("word", ["venv/bin/python", "./venv/bin/python", "{}/venv/bin/python", "delivered"])
def test_a_delivered_interpreter_is_taken_as_it_was_named(word, lab, pytester, monkeypatch):
    """A relative path counts from where pytest was called; a venv's link is kept, for its target has no torch."""
    place = pytester.mkdir("venv").joinpath("bin")
    place.mkdir()
    for name in ("python", "delivered"):
        (place / name).symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    assert lab(SUITE, f"--hw-python={word.format(pytester.path)}", body=TELLS).ret == 0
    assert (pytester.path / "python").read_text() == str(place / word.rpartition("/")[2])


def test_a_relative_interpreter_counts_from_where_pytest_was_called(tmp_path, monkeypatch):
    """Whoever has changed the folder since has not changed what was meant."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir("/")
    assert _interpreter("bin/python", tmp_path) == str(tmp_path / "bin" / "python")


def remarks(pytester):
    """Return the remarks of the evidence."""
    records = map(json.loads, (pytester.path / "ev" / "evidence.jsonl").read_text().splitlines())
    return [record["reason"] for record in records if record["k"] == "remark"]


FLOORS = """
[line."gpu.gemm.efficiency"]
min = 0.55
unit = "ratio"
source = "s"
[line."gpu.copy.device"]
min_fraction = 0.65
unit = "GB/s"
source = "s"
"""
"""What a profile of GPUs must have."""


@pytest.mark.parametrize(
    ("gpus", "visible", "said"), [(1, "3", True), (1, "", True), (1, None, False), (0, "3", False)]
)
def test_gpus_that_the_shell_hides_are_a_remark(gpus, visible, said, lab, pytester, monkeypatch):
    """The loads do not heed it and the engines would: who reads the decision is told, where there are GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    profile = lab(run=False).path / "thresholds" / "lab.toml"
    if gpus:
        profile.write_text(f'card = "rtx4090"\ngpus = {gpus}\n{profile.read_text()}{FLOORS}')
    pytester.runpytest("--hw=lab", "--hw-evidence=ev")
    heeded = "loads do not heed it, engines started from this shell do: unset it"
    about = [remark for remark in remarks(pytester) if "CUDA_VISIBLE_DEVICES" in remark]
    assert about == [f"CUDA_VISIBLE_DEVICES={visible} is set: {heeded}"] * said


TIMED = """
import pathlib
import pytest

def told(request):
    marker = request.node.get_closest_marker("timeout")
    pathlib.Path(request.node.originalname).write_text(str(marker.args[0] if marker else None))

@pytest.mark.spec("lab.volts")
def test_volts(host, accept, request):
    told(request)
    accept(host.probe("lab.meter"))

@pytest.mark.timeout(70)
class TestTimed:
    @pytest.mark.spec("lab.errors")
    def test_errors(self, host, accept, request):
        told(request)
        accept(host.probe("lab.meter"))

def test_plain(request):
    told(request)
"""


@pytest.mark.parametrize(
    ("options", "volts", "errors"),
    [
        (["-o", "timeout=60"], "14400", "70"),
        ([], "14400", "70"),
        (["--timeout=50"], "None", "70"),
        (["-p", "no:timeout", "-W", "ignore::pytest.PytestUnknownMarkWarning"], "None", "70"),
    ],
)
def test_an_item_has_time_for_a_soak_unless_somebody_says_otherwise(options, volts, errors, lab, pytester):
    """A suite's default is for tests of code; a marker, also of a class, and the command line are the user's word."""
    lab(TIMED, *options)
    given = [(pytester.path / name).read_text() for name in ("test_volts", "test_errors", "test_plain")]
    assert given == [volts, errors, "None"]
