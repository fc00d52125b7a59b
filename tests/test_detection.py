"""False alarms and detection: the arithmetic, the sampling, and that a scaled value stands for a planted loss."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.cli import main
from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED
from pytest_gpuaccept.selfcheck.detection import (
    ALARM_HEAD,
    BASELINE_RUNS,
    DETECTION_HEAD,
    LOSSES,
    Alarm,
    Flaw,
    Reading,
    Sample,
    Study,
    alarms,
    at_most,
    causes,
    detection,
    goal,
    header,
    interval,
    limited,
    own,
    page,
    percent,
    rate_lines,
    shipped,
    sign_offs,
    table,
    words,
)
from pytest_gpuaccept.selfcheck.matrix import sign_off
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

SEEDS = 8
FP16 = ("gpu.gemm.fp16", "gpu0")


def scenario(text):
    """The shipped scenario that a short form says."""
    return load_scenario(text, SHIPPED, SHIPPED / "scenarios")


def sampled(*rates, seed=0, flaws=()):
    """Sign-offs of one machine with these FP16 rates."""
    return tuple(Sample(seed, noise, tuple(flaws), {FP16: rate}) for noise, rate in enumerate(rates))


@pytest.fixture(scope="module")
def small(profile):
    """A study of eight machines, in this process."""
    return sign_offs(profile, SEEDS, 1)


@pytest.fixture
def fp16(profile):
    """The line of the FP16 product: at least 150 TFLOPS, guard 3."""
    return profile.lines["gpu.gemm.fp16"]


# intervals and shares ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "of", "low", "high"),
    [(0, 10, 0.0, 0.30850), (1, 10, 0.00253, 0.44502), (5, 10, 0.18709, 0.81291), (10, 10, 0.69150, 1.0)],
)
def test_the_interval_is_the_published_one(found, of, low, high):
    """Clopper-Pearson at 95 %, as tables give it."""
    assert interval(found, of) == pytest.approx((low, high), abs=5e-6)


def test_no_alarm_in_three_thousand_machines_does_not_prove_the_goal():
    """With none seen the upper end is 1 - 0.025^(1/n): 0.123 % for 3,000, under 0.1 % from 3,688 on."""
    assert interval(0, 3000)[1] == pytest.approx(1 - 0.025 ** (1 / 3000), rel=1e-9)
    assert interval(0, 3687)[1] >= 0.001 > interval(0, 3688)[1]


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_each_end_leaves_one_tail(share):
    """The share lies in its interval, and at either end what was seen or worse has the probability 2.5 %."""
    found, of = share
    low, high = interval(found, of)
    assert 0.0 <= low <= found / of <= high <= 1.0
    assert found == of or at_most(found, of, high) == pytest.approx(0.025)
    assert found == 0 or at_most(found - 1, of, low) == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0"), (0.0001, "0.1"), (0.5, "50.0"), (0.99999, "99.9"), (1.0, "100")]
)
def test_only_none_is_0_and_only_all_is_100(share, text):
    """A rare verdict is not rounded away, nor a nearly certain one to certainty."""
    assert percent(share) == text


# false alarms ------------------------------------------------------------------------------------


def test_alarms_count_machines_and_causes_count_devices():
    """Two devices of one machine are one machine with a FAIL; an advisory FAIL is no required one."""
    fails = [Flaw("gpu.gemm.fp16", f"gpu{i}", "FAIL", "required") for i in (0, 1)]
    missing = [Flaw("gpu.xid", "gpu0", "NOT_RUN", "required")]
    remarks = [Flaw("vllm.load", "vllm", "FAIL", "advisory"), Flaw("gpu.burn.tflops", "gpu1", "MARGINAL", "required")]
    samples = [Sample(i, 0, tuple(flaws), {}) for i, flaws in enumerate((fails, missing, remarks, []))]
    assert [(alarm.found, alarm.of) for alarm in alarms(samples)] == [(1, 4), (1, 4), (1, 4), (1, 4)]
    assert causes(samples)[0] == ("gpu.gemm.fp16", "FAIL", "required", 1, 2)
    assert len(causes(samples)) == 4


@pytest.mark.parametrize(
    ("found", "of", "says"),
    [(0, 3000, "Met: 0 of 3,000. The interval reaches 0.123%"), (0, 4000, "lies below it"), (3, 3000, "MISSED: 3")],
)
def test_the_goal_is_missed_met_or_proven(found, of, says):
    """A share at the goal is a miss; a share under it says whether the interval is under it too."""
    assert says in goal(Alarm("", found, of))


# detection ---------------------------------------------------------------------------------------


def test_rate_lines_are_the_measured_floors(profile):
    """Rates with a floor: no count, no share, no ratio that is calculated from rates."""
    lines = {line.id for line in rate_lines(profile)}
    assert lines >= {"gpu.gemm.fp16", "gpu.copy.h2d", "gpu_pair.copy", "nvme.read.rand", "vllm.single.decode"}
    assert not lines & {"gpu.gemm.efficiency", "host.memory.installed", "cpu.burn.load", "gpu.burn.temperature"}


@pytest.mark.parametrize("seed", [0, 5])
def test_a_scaled_value_agrees_with_a_planted_loss(profile, catalogue, seed):
    """A loss of 10 % planted in the machine's physics changes a rate and its verdict as scaling by 0.9 does.

    Two GPUs: with other matrix products, the copies after them draw other noise.
    """
    healthy = f"healthy,seed={seed}"
    machine = SimWorld(profile, scenario(healthy)).machine
    gpu, drive = machine.gpus[1].p, machine.drives["nvme0"]
    planted = {
        "gpu2.kernel.slow": 0.1, "gpu1.copy.h2d": gpu.h2d_gbs * 0.9, "gpu1.vram.slow": gpu.vram_gbs * 0.9,
        "gpu1.copy.staged": gpu.staged_gbs * 0.9, "nvme0.read.slow": drive.read_mbs * 0.9,
        "nvme0.iops.write": drive.write_iops * 0.9, "vllm.slow": machine.vllm.roofline * 0.9,
        "llamacpp.slow": machine.llamacpp.roofline * 0.9,
    }  # fmt: skip
    was = sign_off(profile, catalogue, healthy)
    now = sign_off(profile, catalogue, ",".join([healthy, *(f"fault={f}:{v}" for f, v in planted.items())]))
    for line, device in (
        ("gpu.gemm.fp16", "gpu2"), ("gpu.burn.tflops", "gpu2"), ("gpu.combined.tflops", "gpu2"),
        ("gpu.copy.h2d", "gpu1"), ("gpu.copy.device", "gpu1"), ("nvme.read.seq", "nvme0"),
        ("nvme.write.rand", "nvme0"), ("vllm.single.decode", "vllm"), ("llamacpp.decode", "llamacpp"),
    ):  # fmt: skip
        before, after = was[line, device], now[line, device]
        assert after.value == pytest.approx(before.value * 0.9, rel=0.002), line
        assert dict(words([Reading(device, before.value, profile.lines[line])], 0.1)) == {after.verdict: 1}, line


def test_a_loss_is_found_when_the_line_says_so(fp16):
    """160 TFLOPS by a floor of 150 with a guard of 3: passes whole, marginal 5 % down, fails 10 % down."""
    found = detection(fp16, "", [Reading("gpu0", 160.0, fp16), Reading("gpu1", 200.0, fp16)])
    by_loss = dict(zip(LOSSES, found.shares, strict=True))
    assert (by_loss[0.0], by_loss[0.05], by_loss[0.1]) == ((0.0, 0.0), (0.0, 0.5), (0.5, 0.5))
    assert found.margin == pytest.approx(160 / 150 - 1)


def test_a_replaced_limit_keeps_everything_else(fp16):
    """The shipped limit gives the shipped line; another one keeps the guard's share of it."""
    assert limited(fp16, fp16.min) == fp16
    other = limited(fp16, 300.0)
    assert (other.min, other.guard, other.severity) == (300.0, pytest.approx(2 * fp16.guard), fp16.severity)


def test_every_run_is_judged_by_the_median_of_the_others(profile, fp16):
    """A run is no part of its own baseline, and the limit is 3 % below that."""
    runs = sampled(100.0, 101.0, 102.0, 103.0, 104.0, 200.0)
    got = own(Study(profile, (), (runs,)), fp16)
    assert [reading.value for reading in got] == [100.0, 101.0, 102.0, 103.0, 104.0, 200.0]
    assert got[0].line.min == pytest.approx(103.0 * 0.97)
    assert got[5].line.min == pytest.approx(102.0 * 0.97)


def test_a_run_without_a_value_is_left_out(profile, fp16):
    """What could not be measured is no reading and no part of a baseline, never a 0."""
    gone = Sample(0, 9, (Flaw(*FP16, "ERROR", "required"),), {})
    assert len(own(Study(profile, (), ((*sampled(100.0, 101.0), gone),)), fp16)) == 2
    assert shipped(Study(profile, (gone,), ()), fp16) == []


# sampling ----------------------------------------------------------------------------------------


def test_noise_is_another_run_on_the_same_machine(profile, catalogue):
    """Silicon, slots and serials follow from the seed; only what is measured differs."""
    first, again = (SimWorld(profile, scenario(f"healthy,seed=3,noise={n}")).machine for n in (0, 1))
    assert [gpu.p for gpu in first.gpus] == [gpu.p for gpu in again.gpus]
    assert first.seed == again.seed
    assert first.random("x").random() != again.random("x").random()
    assert first.gpus[0].rng.random() != again.gpus[0].rng.random()
    was, now = (sign_off(profile, catalogue, f"healthy,seed=3{n}")[FP16].value for n in ("", ",noise=1"))
    assert was != now
    assert now == pytest.approx(was, rel=0.01)


def test_noise_is_read_from_a_scenario_file(tmp_path):
    """`noise` stands beside `seed`, and is refused when it is no number of a run."""
    (tmp_path / "s.toml").write_text("seed = 4\nnoise = 2\n")
    assert load_scenario("./s.toml", tmp_path, tmp_path).noise == 2
    (tmp_path / "s.toml").write_text("noise = -1\n")
    with pytest.raises(InputError, match="noise: -1 is not a number"):
        load_scenario("./s.toml", tmp_path, tmp_path)


def test_a_study_follows_from_its_arguments(profile, small):
    """Eight machines, one of them six times; two processes find what one finds."""
    assert [sample.seed for sample in small.machines] == list(range(SEEDS))
    assert [(sample.seed, sample.noise) for sample in small.repeated[0]] == [(0, n) for n in range(BASELINE_RUNS + 1)]
    assert len({sample.rates[FP16] for sample in small.machines}) == SEEDS
    assert len({sample.rates[FP16] for sample in small.repeated[0]}) == BASELINE_RUNS + 1
    assert sign_offs(profile, SEEDS, 2) == small


def test_healthy_machines_have_no_flaw(small):
    """None of the eight has a line that is not PASS."""
    assert [sample.flaws for sample in small.machines] == [()] * SEEDS


# words -------------------------------------------------------------------------------------------


def test_a_page_says_what_it_was_made_from_and_names_every_rate_line_twice(small):
    """SIMULATED, profile, date and seeds; a row for the shipped limit, and one for the machine's own."""
    text = page(small, "2026-11-23")
    assert text.startswith("SIMULATED")
    assert "- profile: 4x4090" in text
    assert "- date: 2026-11-23" in text
    assert "- seeds: 0 to 7, 8 machines" in text
    for line in rate_lines(small.profile):
        assert len(re.findall(rf"^\| {re.escape(line.id)} ", text, re.MULTILINE)) == 2


def test_the_command_prints_the_page(profile, capsys, tmp_path, monkeypatch):
    """`gpuaccept detection PROFILE` needs no file and ends with 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "pytest_gpuaccept.selfcheck.detection.sign_offs", lambda *asked: Study(asked[0], sampled(160.0), ())
    )
    assert main(["detection", "--seeds", "1", "--workers", "1"]) == 0
    assert header(Study(profile, sampled(1.0), ()), "").splitlines()[0] in capsys.readouterr().out


def test_no_machine_is_a_usage_error(capsys):
    """`--seeds 0` ends with 4 and says what is asked for."""
    with pytest.raises(SystemExit) as exit_:
        main(["detection", "--seeds", "0"])
    assert exit_.value.code == 4
    assert "'0' is not a number from 1" in capsys.readouterr().err


def test_the_document_shows_what_the_command_prints(request, profile):
    """docs/detection.md has the columns, the lines and the kind of header that the command prints."""
    text = (request.config.rootpath / "docs" / "detection.md").read_text()
    assert all(table(head, ()) in text for head in (ALARM_HEAD, DETECTION_HEAD))
    assert all(f"| {line.id}" in text for line in rate_lines(profile))
    words_of = [line.split(":")[0] for line in header(Study(profile, sampled(1.0), ()), "").splitlines()]
    assert all(f"\n{word}" in text for word in words_of)
    assert f"- profile: {profile.name}," in text
