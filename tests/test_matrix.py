"""The fault matrix: what a proof says when it does not hold, what well-known tools pass, faults through pytest."""

from pathlib import Path

import pytest

from pytest_gpuaccept.bundle import read_bundle
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.selfcheck import matrix
from pytest_gpuaccept.selfcheck.matrix import Bed
from pytest_gpuaccept.selfcheck.proofs import PEER_GAPS, PROOFS, Proof

ACCEPTANCE = str(SHIPPED / "acceptance")


@pytest.fixture(scope="module")
def beds(catalogue):
    """Two shipped profiles on simulated machines, by name; what was judged once is kept."""
    return {name: Bed(load_profile(name, catalogue, SHIPPED), catalogue) for name in ("1xh100", "4x4090")}


def test_a_line_without_a_proof_is_named(beds, monkeypatch):
    """Taking the proofs of a line away is noticed: the meta-test can fail."""
    fewer = tuple(proof for proof in PROOFS if proof.line != "nic.flaps")
    monkeypatch.setattr(matrix, "PROOFS", fewer)
    assert matrix.unproven(beds["1xh100"]) == ["nic.flaps"]


@pytest.mark.parametrize(
    ("proof", "flaw"),
    [
        (Proof("gpu.xid", "nic.flap"), "fault=nic0.flap does not make gpu.xid fail"),
        (Proof("gpu.pcie.gen", "gpu.pcie.gen"), "changes gpu.copy.h2d[gpu0] too, which gpu.pcie.gen's proof does not"),
    ],
)
def test_a_proof_that_does_not_hold_says_why(proof, flaw, beds):
    """A fault that another line sees, or that changes more than declared, is no proof."""
    assert flaw in "\n".join(beds["1xh100"].changed(proof).flaws())


def test_a_fault_that_is_taken_away_leaves_a_passing_machine(beds):
    """A fault that begins with the burn leaves every line of the loads before it as on a healthy machine."""
    changed = beds["1xh100"].changed(Proof("gpu.burn.errors", "gpu.bitflip:5@burn", ("gpu.combined.errors",)))
    assert {line for line, _ in changed.verdicts} == {"gpu.burn.errors", "gpu.step.errors", "gpu.combined.errors"}


def test_every_fault_of_the_catalogue_is_planted():
    """No fault is in the catalogue that no proof and no claim of harmlessness uses."""
    assert matrix.unused() == []


def test_the_gaps_of_other_tools_are_all_there():
    """All twenty-two faults that a well-known tool passes are listed, each with a line or a place."""
    assert [gap.number for gap in PEER_GAPS] == list(range(1, 23))
    assert all(bool(gap.line and gap.fault) != bool(gap.where) for gap in PEER_GAPS)


@pytest.mark.parametrize("gap", [gap for gap in PEER_GAPS if gap.fault], ids=lambda gap: gap.fault)
def test_what_a_well_known_tool_passes_is_caught(gap, beds):
    """The named line is FAIL or ERROR, and was PASS before."""
    caught = matrix.caught(beds["4x4090"], gap)
    assert caught
    assert {v.verdict for v in caught} <= {"FAIL", "ERROR"}
    assert all(beds["4x4090"].healthy[v.line, v.device].verdict == "PASS" for v in caught)


def sign_off(pytester, *args):
    """Sign off a simulated 4x4090 through pytest; return the result and its bundle."""
    options = ("--hw=4x4090", "--hw-evidence=ev", "-p", "no:hypothesispytest", "-q", "--tb=no", "-rN")
    result = pytester.runpytest(ACCEPTANCE, *options, *args)
    return result, read_bundle(pytester.path / "ev")


@pytest.mark.parametrize(
    ("fault", "line", "reason"),
    [("host.log.unreadable", "host.log.complete", "group adm"), ("nvme0.missing", "nvme.read.seq", "mount of nvme0: ")],
)
def test_what_shows_at_rest_holds_every_load_back(pytester, fault, line, reason):
    """An hour of burns is not begun where the kernel log, or the folder of a drive, is seen not to be there."""
    result, bundle = sign_off(pytester, f"--hw-sim=healthy,fault={fault}")
    found = {v.line: v for v in bundle.verdicts}
    assert reason in found[line].reason or found[line].verdict == "NOT_RUN"
    assert {found[name].verdict for name in ("cpu.burn.errors", "gpu.burn.errors")} == {"NOT_RUN"}
    assert f"{reason}" in result.stdout.str()
    assert "no load is started" in result.stdout.str()


def test_all_tests_skipped_is_not_accepted(pytester):
    """Fault 11: a suite that skips everything is INCOMPLETE."""
    pytester.makepyfile(skips="import pytest\ndef pytest_runtest_setup(item): pytest.skip('not today')")
    pytester.syspathinsert()
    result, bundle = sign_off(pytester, "--hw-sim", "-p", "skips")
    assert (result.ret, bundle.manifest["decision"]) == (10, "SIMULATED INCOMPLETE")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[line."gpu.gemm.fp61"]\nmin = 150\nunit = "TFLOPS"\nsource = "order"', "did you mean 'gpu.gemm.fp16'?"),
        ('[line."gpu.copy.device"]\nmin = 92.0\nunit = "GB/s"\nsource = "order"', "below 30% it cannot fail"),
        (
            '[line."gpu.gemm.fp16"]\nmin = 1500\nunit = "TFLOPS"\nsource = "order"',
            "above the 207.6 TFLOPS that it can reach",
        ),
    ],
    ids=["12-misspelt", "14-too-low", "14-too-high"],
)
def test_a_limit_that_means_nothing_is_a_usage_error(line, said, pytester):
    """Faults 12 and 14: a misspelt metric and a limit off by a decimal end with 4, before anything is measured."""
    (pytester.path / "order.toml").write_text(f'title = "order"\ninherits = ["4x4090"]\n{line}\n')
    result = pytester.runpytest(ACCEPTANCE, "--hw=order.toml", "--hw-sim", "-p", "no:hypothesispytest")
    assert result.ret == 4
    assert said in result.stdout.str() + result.stderr.str()


def test_a_run_cut_off_half_way_is_not_accepted(pytester):
    """Fault 18: what was good so far is not good."""
    stops = (
        "def pytest_runtest_logreport(report):\n    if 'gpu.gemm' in report.nodeid:\n        raise KeyboardInterrupt\n"
    )
    pytester.makepyfile(stops=stops)
    pytester.syspathinsert()
    result, bundle = sign_off(pytester, "--hw-sim", "-p", "stops")
    assert (result.ret, bundle.manifest["decision"]) == (10, "SIMULATED INCOMPLETE")


@pytest.mark.parametrize(
    ("scenario", "decision", "blocking"),
    [
        ("healthy", "SIMULATED ACCEPTED", set()),
        ("healthy,fault=gpu2.pcie.width:8", "SIMULATED REJECTED", {"gpu.pcie.width"}),
        ("healthy,fault=gpu1.bitflip.hot:2@>60C", "SIMULATED REJECTED", {"gpu.burn.errors", "gpu.combined.errors"}),
        ("healthy,fault=nic0.flap@burn", "SIMULATED REJECTED", {"nic.flaps"}),
        (
            "healthy,fault=gpu3.sensor.gone",
            "SIMULATED INCOMPLETE",
            {"gpu.burn.temperature", "gpu.combined.temperature"},
        ),
        ("healthy,fault=host.exporter.down", "SIMULATED ACCEPTED WITH REMARKS", set()),
        ("healthy,fault=gpu0.xid:79@burn", "SIMULATED REJECTED", {"gpu.xid"}),
        ("healthy,fault=gpu1.lost@burn", "SIMULATED REJECTED", {"gpu.xid", "gpu.burn.errors"}),
        ("healthy,fault=gpu2.missing@burn", "SIMULATED REJECTED", {"gpu.combined.tflops", "host.inventory.unchanged"}),
        ("healthy,fault=gpu2.pcie.width:8@burn", "SIMULATED REJECTED", {"gpu.burn.width"}),
        ("healthy,fault=cpu.burn.wrong:2@combined", "SIMULATED REJECTED", {"cpu.combined.errors"}),
        ("healthy,fault=gpu1.bitflip:2@>200C", "SIMULATED ACCEPTED WITH REMARKS", set()),
        ("healthy,fault=gpu1.pcie.width:16", "SIMULATED ACCEPTED WITH REMARKS", set()),
    ],
)
def test_a_sample_of_faults_goes_through_pytest(scenario, decision, blocking, pytester):
    """The decision, the exit status and the lines in the way are those of the fault."""
    result, bundle = sign_off(pytester, f"--hw-sim={scenario}")
    assert bundle.manifest["decision"] == decision
    assert bundle.manifest["scenario"] == scenario
    assert result.ret == {"REJECTED": 1, "INCOMPLETE": 10}.get(decision.split()[-1], 0)
    assert {v.line for v in bundle.verdicts if v.blocks} >= blocking
    assert bool(blocking) == any(v.blocks for v in bundle.verdicts)
    assert {v.provenance for v in bundle.verdicts} <= {"simulated", "calculated", ""}


def test_a_fault_that_changed_nothing_is_said(pytester):
    """A rehearsal whose fault never came is not taken for one that passed it."""
    _, bundle = sign_off(pytester, "--hw-sim=healthy,fault=gpu1.bitflip@9999s")
    assert "the planted fault gpu1.bitflip changed nothing in this run" in bundle.manifest["reasons"]


def test_junit_says_simulated_beside_every_case(pytester, items):
    """What a CI server shows of a simulated run carries the stamp."""
    sign_off(pytester, "--hw-sim", "--junitxml=cases.xml")
    cases = (pytester.path / "cases.xml").read_text().split("<testcase ")[1:]
    assert len(cases) == items
    assert all('name="gpuaccept.stamp" value="SIMULATED"' in case for case in cases)


def test_a_card_that_vanishes_does_not_hand_its_name_to_its_neighbour(pytester):
    """The healthy cards are still judged under their own ids."""
    _, bundle = sign_off(pytester, "--hw-sim=healthy,fault=gpu2.missing@burn")
    words = {v.device: v.verdict for v in bundle.verdicts if v.line == "gpu.combined.tflops"}
    assert words == {"gpu0": "PASS", "gpu1": "PASS", "gpu2": "ERROR", "gpu3": "PASS"}


def test_the_machine_as_delivered_fails_where_its_published_figures_do(pytester, case_study):
    """Every line that the recording fails fails on the simulated machine too."""
    _, bundle = sign_off(pytester, "--hw-sim=case-study")
    published = {(v.line, v.device) for v in read_bundle(case_study).verdicts if v.verdict == "FAIL"}
    assert published <= {(v.line, v.device) for v in bundle.verdicts if v.verdict == "FAIL"}


def test_a_simulated_run_replayed_gives_the_same_verdicts_byte_for_byte(pytester):
    """Replay and simulation share every id and every rule; the replay says where its values come from."""
    sign_off(pytester, "--hw-sim=healthy,seed=3,fault=gpu1.fan.dead")
    (pytester.path / "ev").rename(pytester.path / "first")
    _, again = sign_off(pytester, "--hw-replay=first")
    assert (pytester.path / "first" / "verdicts.jsonl").read_bytes() == (again.folder / "verdicts.jsonl").read_bytes()
    assert again.manifest["decision"] == "REPLAYED SIMULATED REJECTED"


@pytest.mark.parametrize("more", ["--hw-sim", "--hw-replay=recordings/case-study-2026-04-10", "--hw-go-on"])
def test_live_simulated_and_replayed_collect_the_same_items(more, pytester, items):
    """The ids of the items follow from the profile alone."""
    options = ("--hw=4x4090", "--collect-only", "-q", "-p", "no:hypothesispytest")
    got = pytester.runpytest(ACCEPTANCE, *options, more).outlines
    plain = pytester.runpytest(ACCEPTANCE, *options).outlines
    ids = [[line for line in lines if "::" in line] for lines in (got, plain)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == items


def test_a_page_says_what_a_fault_sets_who_sees_it_and_how_to_plant_it():
    """The page of a fault is complete; an unknown name gets the nearest known one."""
    text = matrix.page("gpu.bitflip.hot")
    assert "flips_per_s = 2.0, flip_above_c = 55.0" in text
    assert "gpu.burn.errors" in text
    assert "fault=gpu0.bitflip.hot" in text
    with pytest.raises(InputError, match=r"did you mean 'gpu\.pcie\.width'"):
        matrix.page("gpu.pcie.with")


def test_the_shipped_scenarios_are_found_from_anywhere(catalogue, tmp_path):
    """A wheel's user has healthy and case-study without a folder of scenarios."""
    assert {file.stem for file in Path(SHIPPED / "scenarios").glob("*.toml")} >= {"healthy", "case-study"}
