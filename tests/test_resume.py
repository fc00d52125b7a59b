"""Reset is a result: a run that dies is found again, charged to what ran, and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept import supervisor
from pytest_gpuaccept.bench import SINCE_RESUMED
from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.cli import main
from pytest_gpuaccept.errors import InputError, Unmeasurable
from pytest_gpuaccept.evidence import Writer, is_being_written
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.probe import PHASES
from pytest_gpuaccept.probes.resets import Cut, resets
from pytest_gpuaccept.readings import decode, encode
from pytest_gpuaccept.report import summary_text
from pytest_gpuaccept.resume import take, unfinished
from pytest_gpuaccept.run import start
from pytest_gpuaccept.simulate import simulated
from pytest_gpuaccept.world import OWNER, LiveWorld

PROFILE = """
title = "a machine with one of everything"
inherits = ["base-gpu"]
card = "rtx4090"
gpus = 1

[devices]
nvme = ["nvme0"]
llamacpp = ["llamacpp"]

[device.nvme0]
mount = "/mnt/nvme"

[effort.quick."nvme.fio"]
size_gib = 1

[line."nvme.read.seq"]
min = 200
unit = "MB/s"
source = "any drive"

[line."llamacpp.load"]
max = 60
unit = "s"
severity = "advisory"
source = "so that an engine runs too"
"""
SCENARIO = """
[host]
boot = {boot}
"""
CONFTEST = """
import os, signal
from pytest_gpuaccept.bench import Bench

measure = Bench._measure

def dies(self, probe, device):
    if os.environ.get("DIES_IN") in (probe.phase, probe.name):
        os.killpg(0, signal.SIGKILL)
    return measure(self, probe, device)

Bench._measure = dies
"""
COMPARED = (
    "gpu.aer.corrected", "gpu.aer.uncorrected", "gpu.aer.replay_failed", "gpu.aer.outlier", "gpu.aer.since_boot",
    "gpu.pcie.replay_rate", "gpu.xid", "gpu.processes.", "gpu.state.", "nic.", "host.watch.", "host.events.",
    "host.taint.new", "host.inventory.unchanged",
)  # fmt: skip
"""What only a comparison with the start of the run says."""

OF_ONE_PROCESS = ("host.watch.gap", "monitoring.end_to_end")
"""Nobody watched while no process ran; a simulated monitoring that is built anew knows of no burn before."""


@dataclass(frozen=True)
class Lab:
    """A folder from which the simulated machine is signed off."""

    folder: Path
    profile: object
    catalogue: object

    def boot(self, number):
        """Let the machine be in its boot with a number from now on."""
        (self.folder / "machine.toml").write_text(SCENARIO.format(boot=number))

    def pytest(self, *args, dies_in=""):
        """Run the acceptance suite in a process group of its own, which a probe may kill."""
        argv = [sys.executable, "-m", "pytest", "acceptance", "--hw=lab", "--hw-sim=./machine.toml", "--tb=no", "-q"]
        environment = {**os.environ, "DIES_IN": dies_in}
        argv += ["--hw-effort=quick", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"]
        return subprocess.run(
            [*argv, *args], cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
            start_new_session=True,
        )  # fmt: skip

    def source(self):
        """Return the simulated machine, as it is when a run begins."""
        return simulated(self.profile, "./machine.toml", self.folder)

    def take(self, bundle, source=None, **otherwise):
        """Read what a run that was cut off leaves to one on this machine."""
        source = source or self.source()
        how = {"profile": self.profile, "mode": source.mode, "scenario": source.scenario, **otherwise}
        return take(bundle, how["profile"], self.catalogue, how["mode"], how["scenario"], source.world)

    def resume(self, bundle, folder, until=None, only=lambda _: True):
        """Go on with a run without pytest, to its end or until a line that is not judged any more."""
        source = self.source()
        source = replace(source, resumption=self.take(bundle, source))
        run = start(self.profile, self.catalogue, source.world.clock, source, folder)
        run.bench.begin()
        for key in run.expected():
            if key[0] == until:
                run.writer._file.close()
                return None
            if only(key[0]):
                run.settle(run.judge(*key))
        return SimpleNamespace(run=run, decision=run.finish("not judged"), verdicts=run.verdicts)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, catalogue):
    """A folder with a suite, a profile and a machine in its first boot."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(SHIPPED / "acceptance", folder / "acceptance", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "thresholds").mkdir()
    (folder / "thresholds" / "lab.toml").write_text(PROFILE)
    lab = Lab(folder, load_profile("lab", catalogue, folder, "quick"), catalogue)
    lab.boot(0)
    return lab


@pytest.fixture(scope="module")
def phases(lab):
    """Return the phases in which a probe of the machine runs, in the order of a run."""
    homes = {lab.catalogue.home(line).phase for line, _ in lab.catalogue.expected(lab.profile)}
    return [phase for phase in PHASES if phase in homes]


@pytest.fixture(scope="module")
def cut(lab, phases):
    """Return the bundles of runs whose process group was killed as a probe of each phase began, and of a whole one."""
    lab.boot(0)

    def run(phase):
        folder = lab.folder / "cut" / phase
        done = lab.pytest(f"--hw-evidence={folder}", dies_in=phase)
        assert phase == "none" or done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        return phase, folder

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(run, ["none", *phases]))


@pytest.fixture(autouse=True)
def first_boot(request):
    """Let every test find the machine in its first boot."""
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").boot(0)


def words(verdicts):
    """Return {(line, device): word}."""
    return {(v.line, v.device): v.verdict for v in verdicts}


def records(folder, kind):
    """Return a bundle's records of a kind."""
    return [record for record in read_bundle(folder).records if record["k"] == kind]


# killed --------------------------------------------------------------------------------------------


def test_the_phases_are_those_in_which_a_machine_is_measured(phases):
    """No phase is left out, so that none is left unproven below."""
    assert {"inventory", "links", "storage", "cpu", "gpu", "gpus", "combined", "engines", "final"} <= set(phases)


def test_a_run_killed_in_any_phase_is_gone_on_with_to_the_same_verdicts(lab, cut, phases, tmp_path):
    """Nothing that was decided is measured again; every line is decided, as in a run that was not killed."""
    whole = read_bundle(cut["none"])
    for phase in phases:
        done = lab.resume(cut[phase], tmp_path / phase)
        expected = {key: word for key, word in words(whole.verdicts).items() if key[0] not in OF_ONE_PROCESS}
        assert words(done.verdicts.values()).items() >= expected.items(), phase
        ran = {(r["name"], r["device"]) for r in records(tmp_path / phase, "probe")}
        ended = {(r["name"], r["device"]) for r in records(cut[phase], "probe_end")} - {("host.resets", "host")}
        assert not ran & ended, phase
        assert read_bundle(tmp_path / phase).flaws == ()


def test_a_probe_that_was_killed_is_measured_again_and_a_remark_says_so(lab, cut, tmp_path):
    """The machine was not started anew: it was the process that died."""
    done = lab.resume(cut["gpus"], tmp_path / "ev")
    (remark,) = [reason for reason in done.run.remarks if "resumed from" in reason]
    assert "resumed from gpus, which was cut off during gpu.copy_all on host (phase gpus), last heard of at " in remark
    assert "the machine was not started anew, and what had not ended was measured again" in remark
    assert ("gpu.copy_all", "host") in {(r["name"], r["device"]) for r in records(tmp_path / "ev", "probe")}
    resets = done.run.bench.table["host.resets", "host"]
    assert (resets.value, resets.proof) == (
        0,
        "the boot id was read at both ends of the run and of those before it that were cut off",
    )


def test_counts_go_on_from_the_start_of_the_first_run(lab, cut, tmp_path):
    """The readings of the start are kept, so "none seen" covers both runs and the time between them."""
    done = lab.resume(cut["combined"], tmp_path / "ev")
    begun = done.run.source.resumption.carried.begun
    assert {name for name, _ in begun} == {p.name for p in lab.catalogue.probes.values() if p.before} - {"host.watch"}
    assert words(done.verdicts.values())["gpu.xid", "gpu0"] == "PASS"


def test_values_and_attachments_are_taken_over(lab, cut, tmp_path):
    """The new bundle stands alone: each value with its raw output, and where it comes from."""
    lab.resume(cut["final"], tmp_path / "ev")
    was, now = read_bundle(cut["final"]), read_bundle(tmp_path / "ev")
    kept = {key: outcome for key, outcome in was.table().items() if lab.catalogue.metrics[key[0]].derive is None}
    assert {key: now.table()[key] for key in kept} == kept
    assert {r["sha256"] for r in records(cut["final"], "attachment")} <= {
        r["sha256"] for r in records(tmp_path / "ev", "attachment")
    }
    assert now.manifest["origin"]["folder"] == "final"
    assert now.manifest["cuts"][0]["how"] == "killed"


# reset ---------------------------------------------------------------------------------------------


def test_a_reset_in_any_phase_rejects_the_machine_and_names_the_phase(lab, cut, phases, tmp_path):
    """A changed boot id is a failing verdict; the probe that ran is not run again, what had not run is."""
    lab.boot(1)
    for phase in phases:
        (charged,) = records(cut[phase], "probe")[-1:]
        judged = ("host.resets", charged["name"])
        done = lab.resume(cut[phase], tmp_path / phase, only=lambda line: lab.catalogue.home(line).name in judged)  # noqa: B023
        what = f"system reset during {charged['name']} on {charged['device']} (phase {phase})"
        verdict = done.verdicts["host.resets", "host"]
        assert (done.decision.word, verdict.verdict) == ("REJECTED", "FAIL"), phase
        assert what in verdict.reason
        if charged["name"] != "host.resets":
            reasons = {v.reason for v in done.verdicts.values() if v.verdict == "ERROR"}
            assert f"{what}; not measured again, for it may be what resets the machine" in reasons
            assert charged["name"] not in {r["name"] for r in records(tmp_path / phase, "probe")}


def test_after_a_reset_nothing_passes_that_compares_with_the_start_of_the_run(lab, cut, tmp_path):
    """Counters and logs began anew: "none seen" since then is no proof for before."""
    lab.boot(1)
    verdicts = lab.resume(cut["combined"], tmp_path / "ev").verdicts
    assert "NOT_RUN" not in words(verdicts.values()).values()
    compared = {key: v for key, v in verdicts.items() if key[0].startswith(COMPARED)}
    assert compared
    assert {v.verdict for v in compared.values()} == {"ERROR"}
    assert SINCE_RESUMED in verdicts["gpu.xid", "gpu0"].reason


def test_the_report_and_the_findings_show_the_reset(lab, cut, tmp_path, capsys):
    """Who reads the page learns what ran, and what to look at."""
    lab.boot(1)
    lab.resume(cut["combined"], tmp_path / "ev")
    text = summary_text(read_bundle(tmp_path / "ev"), 200, colour=False)
    assert "The machine was reset during combined" in text
    assert "/sys/fs/pstore" in (tmp_path / "ev" / "report.html").read_text()
    assert main(["verify", str(tmp_path / "ev")]) == 0


def test_resets_add_up_over_runs_that_are_resumed_twice(lab, cut, tmp_path):
    """The second run dies too, and what the first one lost stays lost."""
    lab.boot(1)
    lab.resume(cut["gpu"], tmp_path / "second", until="gpu.burn.tflops")
    killed = lab.resume(tmp_path / "second", tmp_path / "third")
    assert killed.verdicts["host.resets", "host"].value == 1
    assert killed.verdicts["gpu.xid", "gpu0"].verdict == "ERROR"
    lab.boot(2)
    done = lab.resume(tmp_path / "second", tmp_path / "fourth")
    verdict = done.verdicts["host.resets", "host"]
    assert (verdict.value, done.decision.word) == (2, "REJECTED")
    assert "on gpu0 (phase gpu) of gpu; system reset after " in verdict.reason


def test_a_boot_id_that_cannot_be_read_proves_nothing(lab, cut, tmp_path):
    """Two reasons that are equal are not two boots that are."""
    bundle = read_bundle(cut["gpus"])
    source = lab.source()
    world = source.world
    real = world.read
    world.read = lambda path: "" if "boot_id" in path else real(path)
    taken = take(bundle.folder, lab.profile, lab.catalogue, source.mode, source.scenario, world)
    assert taken.cuts[0].how == "unknown"
    reason = taken.carried.table["gpu.copy.errors_all", "gpu0"].reason
    assert reason.startswith("cut off, and whether by a system reset cannot be told, during gpu.copy_all on host")


# the metric ----------------------------------------------------------------------------------------


BOOTS = ["3c1b0e0e-0000-4000-8000-000000000001", "3c1b0e0e-0000-4000-8000-000000000002"]


def site(before, now, *cuts):
    """Return a site whose boot was `before` and is `now`."""
    made = SimpleNamespace(before=before, device="host", memory={"cuts": cuts} if cuts else {})
    made.world = SimpleNamespace(read=lambda _: now)
    made.measured = lambda metric, value, **more: Measurement(metric.id, "host", value, metric.unit, **more)
    return made


def cut_off(how):
    """Return the end of a run."""
    return Cut(how, "gpus", "gpu.burn", "host", running=True, boot=BOOTS[0], last="", folder="a")


def test_none_seen_is_proven_by_the_boot_id_of_both_ends():
    """The same boot at both ends is no reset."""
    (outcome,) = resets(site(BOOTS[0], BOOTS[0]))
    assert (outcome.value, outcome.proof) == (0, "the boot id was read at both ends of the run")


def test_a_boot_id_that_changes_within_a_run_is_a_reset():
    """A container that is moved to another machine is not the machine that was measured."""
    (outcome,) = resets(site(*BOOTS))
    assert outcome.value == 1
    assert "the boot id changed within the run" in outcome.note


@pytest.mark.parametrize("before", [None, Unmeasurable("no /proc"), BOOTS[0]])
def test_no_boot_id_is_no_proof(before):
    """Whatever could not be read is an absence, never none seen."""
    (outcome,) = resets(site(before, "not an id"))
    assert isinstance(outcome, NotMeasured)


def test_an_unknown_end_of_an_earlier_run_is_an_absence_and_hides_no_reset():
    """What is known to be a reset counts beside it."""
    (unknown,) = resets(site(BOOTS[0], BOOTS[0], cut_off("unknown")))
    assert isinstance(unknown, NotMeasured)
    (both,) = resets(site(BOOTS[0], BOOTS[0], cut_off("unknown"), cut_off("reset")))
    assert both.value == 1
    assert both.conditions["phases"] == "gpus"


# refused -------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_resumed(lab, cut):
    """Its decision stands."""
    with pytest.raises(InputError, match=r"it is finished \(SIMULATED [A-Z ]+\), nothing of it is undecided"):
        lab.take(cut["none"])


@pytest.mark.parametrize(
    ("otherwise", "reason"),
    [
        ({"mode": "live", "scenario": ""}, "it is of a simulated machine, this run is live"),
        ({"scenario": "healthy"}, r"it was begun with --hw-sim=\./machine\.toml: give the same"),
        ({"profile": "standard"}, "it was begun with --hw-effort=quick: give the same"),
        ({"profile": "stricter"}, "the profile lab has changed since: start a new run"),
        ({"profile": "host"}, "it is of the profile lab, not of host"),
    ],
)
def test_a_run_that_is_another_one_is_not_resumed(lab, cut, catalogue, otherwise, reason):
    """Values are never taken over from what was ordered, checked or measured otherwise."""
    profiles = {
        "standard": lambda: load_profile("lab", catalogue, lab.folder),
        "stricter": lambda: lab.profile.model_copy(update={"title": "another"}),
        "host": lambda: load_profile("host", catalogue, lab.folder),
    }
    if "profile" in otherwise:
        otherwise = {"profile": profiles[otherwise["profile"]]()}
    with pytest.raises(InputError, match=reason):
        lab.take(cut["gpus"], **otherwise)


def test_a_run_of_another_machine_is_not_resumed(lab, cut):
    """The machine is known again by its id; one without an id is nobody's."""
    source = lab.source()
    source.world.machine.seed = 7
    with pytest.raises(InputError, match="another machine"):
        take(cut["gpus"], lab.profile, lab.catalogue, source.mode, source.scenario, source.world)
    source.world.read = lambda _: ""
    with pytest.raises(InputError, match="no id by which it is known again"):
        take(cut["gpus"], lab.profile, lab.catalogue, source.mode, source.scenario, source.world)


def test_a_changed_byte_before_the_cut_refuses_and_a_torn_last_line_does_not(lab, cut, tmp_path):
    """A power cut tears the last line; nothing but a hand changes one that a checkpoint covers."""
    torn = Path(shutil.copytree(cut["gpus"], tmp_path / "torn"))
    evidence = torn / "evidence.jsonl"
    with evidence.open("ab") as file:
        file.write(b'{"seq": 999, "k": "meas')
    assert lab.take(torn).cuts[0].phase == "gpus"
    evidence.write_bytes(evidence.read_bytes().replace(b'"phase": "inventory"', b'"phase": "inventors"', 1))
    with pytest.raises(InputError, match=r"it is not intact: .* a byte between line 0 and this checkpoint was changed"):
        lab.take(torn)


def test_a_run_cut_off_while_it_took_over_names_the_one_to_resume(lab, cut, tmp_path):
    """It holds a part of the values only; the run before it still holds all."""
    lab.resume(cut["gpus"], tmp_path / "ev", until="gpu.burn.tflops")
    evidence = tmp_path / "ev" / "evidence.jsonl"
    lines = evidence.read_bytes().splitlines(keepends=True)
    evidence.write_bytes(b"".join(lines[: next(i for i, line in enumerate(lines) if b'"resumed"' in line)]))
    with pytest.raises(InputError, match="cut off before it had taken over from gpus; resume that one"):
        lab.take(tmp_path / "ev")


def test_a_run_that_is_still_at_work_is_neither_found_nor_resumed(lab, tmp_path):
    """Whoever writes a bundle holds its lock, and loses it with his life."""
    source = lab.source()
    run = start(lab.profile, lab.catalogue, source.world.clock, source, tmp_path / "ev")
    assert is_being_written(tmp_path / "ev")
    with pytest.raises(InputError, match="a run is still at work on it"):
        lab.take(tmp_path / "ev")
    host = run.writer.manifest["host"]
    assert unfinished([tmp_path], "simulated", host) == {}
    run.writer._file.close()
    assert unfinished([tmp_path], "simulated", host) == {tmp_path / "ev": "lab"}
    assert unfinished([tmp_path], "live", host) == {}
    assert unfinished([tmp_path], "simulated", {**host, "machine_id": "0" * 32}) == {}


# the command line ----------------------------------------------------------------------------------


def test_a_new_run_names_the_one_that_was_cut_off_and_resume_goes_on_with_it(lab):
    """One line and a remark; --hw-resume without a name takes it, and then none is left."""
    assert lab.pytest(dies_in="cpu.burn").returncode == -signal.SIGKILL
    (left,) = (lab.folder / "gpuaccept-evidence").glob("*/")
    before = {file: file.read_bytes() for file in left.rglob("*") if file.is_file()}
    lab.boot(1)
    place = f"gpuaccept-evidence/{left.name}"
    since = "by a restart of the machine, which counts in this run"
    told = f"a run of lab was cut off {since}: {place}; --hw=lab --hw-resume={place} goes on"
    done = lab.pytest("--hw-evidence=new", "-k", "host")
    assert f"gpuaccept: {told} with it" in done.stdout
    assert any(told in record["reason"] for record in records(lab.folder / "new", "remark"))
    assert {file: file.read_bytes() for file in left.rglob("*") if file.is_file()} == before
    done = lab.pytest("--hw-resume")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "SIMULATED REJECTED" in done.stdout
    assert "The machine was reset during cpu" in done.stdout
    done = lab.pytest("--hw-resume")
    assert done.returncode == 4
    assert "no run of lab on this machine was cut off in gpuaccept-evidence/" in done.stderr
    assert lab.pytest(f"--hw-resume={place}").returncode == 1


def test_a_reset_is_not_forgotten_by_a_new_run_in_another_folder(lab):
    """Each new run counts it until one that counts it has ended; a run that was only killed is no reset."""
    shutil.rmtree(lab.folder / "gpuaccept-evidence", ignore_errors=True)
    lab.boot(3)
    lab.pytest("--hw-evidence=forgotten/a", dies_in="cpu.burn")
    lab.pytest("--hw-evidence=forgotten/b", "-k", "host", dies_in="cpu.burn")
    lab.boot(4)
    lab.pytest("--hw-evidence=forgotten/c", "-k", "host")
    lab.pytest("--hw-evidence=forgotten/d", "-k", "host")
    counted, clean = (words(read_bundle(lab.folder / "forgotten" / name).verdicts) for name in "cd")
    assert counted["host.resets", "host"] == "FAIL"
    assert clean["host.resets", "host"] == "PASS"
    (verdict,) = [v for v in read_bundle(lab.folder / "forgotten" / "c").verdicts if v.line == "host.resets"]
    assert (verdict.value, "of a" in verdict.reason, "of b" in verdict.reason) == (2, True, True)


def said_of_resets(lab, name, *options):
    """Return what a new run with a bundle of that name says of resets."""
    lab.pytest(f"--hw-evidence={name}", *options)
    return [(v.verdict, v.value) for v in read_bundle(lab.folder / name).verdicts if v.line == "host.resets"]


def test_only_a_run_that_judges_resets_makes_the_next_one_forget_them(lab):
    """A run that leaves the line out, fresh or resumed, stands for nothing; nor does another profile hide the reset."""
    lab.boot(3)
    lab.pytest("--hw-evidence=judges/a", dies_in="cpu.burn")
    lab.boot(4)
    assert said_of_resets(lab, "judges/b", "-k", "host.cpu.model") == [("NOT_RUN", None)]
    assert said_of_resets(lab, "judges/c", "-k", "host.cpu.model", "--hw-resume=judges/a") == [("NOT_RUN", None)]
    other = lab.folder / "thresholds" / "other.toml"
    shutil.copy(other.with_name("lab.toml"), other)
    assert said_of_resets(lab, "judges/d", "--hw=other", "-k", "host.resets") == [("FAIL", 1)]
    other.unlink()
    assert said_of_resets(lab, "judges/e", "-k", "host.resets") == [("PASS", 0)]


@pytest.mark.parametrize("left", [b"", b"\0" * 500, None])
def test_a_run_that_left_no_record_at_all_counts_as_reset(lab, left):
    """The power may go before the first record is on the disk."""
    name = f"nothing-{left and len(left)}"
    lab.boot(3)
    lab.pytest(f"--hw-evidence={name}/a", dies_in="cpu.burn")
    records = lab.folder / name / "a" / "evidence.jsonl"
    records.unlink() if left is None else records.write_bytes(left)
    lab.boot(4)
    assert said_of_resets(lab, f"{name}/b", "-k", "host.resets") == [("FAIL", 1)]


def test_what_cannot_be_resumed_is_a_usage_error(lab, cut):
    """Exit status 4 and a sentence, no traceback."""
    done = lab.pytest(f"--hw-resume={cut['none']}")
    assert (done.returncode, "cannot be resumed: it is finished" in done.stderr) == (4, True)
    done = lab.pytest(f"--hw-resume={lab.folder / 'nowhere'}")
    assert (done.returncode, "is not an evidence bundle" in done.stderr) == (4, True)


def test_an_unfinished_bundle_renders_verifies_and_is_judged_as_incomplete(lab, cut, monkeypatch, capsys):
    """Whatever is done with it, it accepts nothing."""
    monkeypatch.chdir(lab.folder)
    assert main(["render", str(cut["gpus"])]) == 0
    out, page = capsys.readouterr().out, (cut["gpus"] / "report.html").read_text()
    assert "SIMULATED INCOMPLETE" in out
    assert f"--hw=lab --hw-resume={cut['gpus']}" in out
    assert "the run was cut off before it was measured" in page
    assert "Every line has a value" not in page
    assert page.count('class="v PASS"') > 0
    assert main(["verify", str(cut["gpus"])]) == 1
    assert "the run was cut off and decides nothing" in capsys.readouterr().out
    assert main(["rejudge", str(cut["gpus"]), "--hw=lab"]) == 10
    assert "REPLAYED SIMULATED INCOMPLETE" in capsys.readouterr().out


# on the disk ---------------------------------------------------------------------------------------


def test_what_runs_is_on_the_disk_before_it_runs_and_an_attachment_before_its_record(tmp_path, clock, monkeypatch):
    """A power cut takes nothing that says what ran, and leaves no record of an attachment that is gone."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    writer = Writer(tmp_path / "ev", clock, {}, None)
    synced.clear()
    writer.record("probe", name="gpu.burn", device="host", phase="gpus")
    assert synced == ["evidence.jsonl"]
    writer.record("measurement")
    assert synced == ["evidence.jsonl"]
    monkeypatch.setattr(writer, "record", lambda kind, **body: synced.append(kind))
    digest = writer.attach("raw", "text")
    assert synced[1:] == [digest, "attach", "attachment"]
    writer._file.close()


def test_a_run_cut_off_between_its_last_record_and_its_manifest_is_intact(tmp_path, clock, monkeypatch):
    """The manifest without a decision is an older one, not a changed one."""
    writer = Writer(tmp_path / "ev", clock, {"mode": "live"}, None)
    monkeypatch.setattr(writer, "_write_manifest", lambda: None)
    writer.close("ACCEPTED", [])
    assert read_bundle(tmp_path / "ev").flaws == ("no end record: the run was cut off and decides nothing",)


# readings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """A part of a reading."""

    text: str | Unmeasurable


@dataclass(frozen=True)
class Outer:
    """A reading, made of what readings are made of."""

    inner: dict[tuple[str, str], Inner]
    numbers: tuple[float, ...]


def read() -> Outer | str | None:
    """Stand for a probe's `before`."""


TEXT = st.text(max_size=8)
READINGS = st.none() | TEXT | st.builds(
    Outer,
    st.dictionaries(st.tuples(TEXT, TEXT), st.builds(Inner, TEXT), max_size=3),
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)  # fmt: skip


@given(READINGS)
def test_a_reading_is_read_back_as_it_was(reading):
    """Through JSON and back, types included."""
    assert decode(json.loads(json.dumps(encode(reading))), read) == reading


def test_an_absence_in_a_reading_stays_one():
    """What could not be read at the start is not there later either."""
    again = decode(json.loads(json.dumps(encode(Outer({("a", "b"): Inner(Unmeasurable("gone"))}, ())))), read)
    assert str(again.inner["a", "b"].text) == "gone"
    assert isinstance(again.inner["a", "b"].text, Unmeasurable)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(TEXT | st.sampled_from(["of", "fields", "mapping", "tuple", "float"]), part, max_size=3)
    ),
    max_leaves=6,
)


@given(JSON)
def test_what_is_no_reading_is_refused(form):
    """Whatever stands in the file, it is a reading or a ValueError, and no class but the declared ones is made."""
    try:
        decode(form, read)
    except ValueError:
        return


@pytest.mark.parametrize("value", [object(), b"bytes", {"key": {1, 2}}, SimpleNamespace(a=1)])
def test_what_has_no_form_is_not_kept(value):
    """Better no reading than half of one."""
    with pytest.raises(TypeError, match="cannot be kept"):
        encode(value)


# what is left behind -------------------------------------------------------------------------------


def soon(condition):
    """Wait until a condition holds."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_command_dies_with_the_process_that_asked_for_it_and_all_that_it_started_too(tmp_path):
    """Also what left its session, as fio's jobs do; nobody is there to end it."""
    pids = tmp_path / "pids"
    pids.touch()
    script = f"echo $$ >> {pids}; setsid sh -c 'echo $$ >> {pids}; exec sleep 1000' & wait"
    code = f"from pytest_gpuaccept import supervisor\nwith supervisor.command(['sh', '-c', {script!r}]) as c: c.wait()"
    with subprocess.Popen([sys.executable, "-c", code], env=os.environ) as asked:
        soon(lambda: len(pids.read_text().split()) == 2)
        asked.kill()
    started = [int(pid) for pid in pids.read_text().split()]
    soon(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in started))


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -15 $$", -15)])
def test_a_command_ends_as_it_would_without_its_keeper(script, status):
    """Its status, or the signal that ended it."""
    done = LiveWorld().command(["sh", "-c", f"echo out; echo err >&2; {script}"], timeout=60)
    assert (done.status, done.stdout, done.stderr) == (status, "out\n", "err\n")


@pytest.mark.parametrize(("name", "cause"), [("none", "No such file or directory"), ("file", "Permission denied")])
def test_a_command_that_is_none_is_named_with_the_cause(tmp_path, name, cause):
    """The keeper is not what the reader asked for."""
    (tmp_path / "file").touch()
    with pytest.raises(Unmeasurable, match=f"{name} cannot be started: {cause}"), supervisor.command(
        [str(tmp_path / name)]
    ):  # fmt: skip
        pass


def test_only_folders_of_dead_runs_are_cleared(tmp_path):
    """A run that lives keeps its folder; what has no owner of ours is nobody's to remove."""
    code = (
        "import sys, os, signal\nfrom pytest_gpuaccept.world import LiveWorld\n"
        f"with LiveWorld().folder({str(tmp_path)!r}) as folder:\n"
        " open(folder + '/fio.dat', 'w').close()\n os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (dead,) = tmp_path.iterdir()
    (tmp_path / ".gpuaccept-000000000000").mkdir()
    (tmp_path / ".gpuaccept-mine").mkdir()
    (tmp_path / ".gpuaccept-mine" / OWNER).touch()
    kept = {tmp_path / ".gpuaccept-000000000000", tmp_path / ".gpuaccept-mine", tmp_path / ".gpuaccept-111111111111"}
    (tmp_path / ".gpuaccept-111111111111").symlink_to(dead)
    with LiveWorld().folder(str(tmp_path)) as alive:
        assert LiveWorld().clear(str(tmp_path)) == [str(dead)]
        assert set(tmp_path.iterdir()) == {Path(alive), *kept}
    assert set(tmp_path.iterdir()) == kept
