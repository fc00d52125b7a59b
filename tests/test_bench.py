"""The table: each probe runs once, and what it does not say is known too."""

import pytest

from pytest_gpuaccept.bench import NO_METHOD, Bench
from pytest_gpuaccept.errors import InputError, Unmeasurable
from pytest_gpuaccept.evidence import outcome_record, record_outcome
from pytest_gpuaccept.measurement import Measurement, NotMeasured
from pytest_gpuaccept.metric import Metric
from pytest_gpuaccept.probe import Catalogue, Probe
from pytest_gpuaccept.profile import Attestation, Profile

A, B = Metric("x.a", "a", "W", "gpu"), Metric("x.b", "b", "W", "gpu")


class Journal:
    """Remembers what it was told."""

    def __init__(self):
        self.records, self.outcomes, self.attached = [], [], []

    def record(self, kind, **body):
        """Remember a record."""
        self.records.append((kind, body))

    def outcome(self, outcome):
        """Remember an outcome."""
        self.outcomes.append(outcome)

    def attach(self, name, text):
        """Remember raw text."""
        self.attached.append((name, text))
        return "digest"


class World:
    """A world with no tools."""

    clock = None
    loads = frozenset()

    def has(self, tool):
        """Have nothing."""
        return False

    refused = {}
    """Load script -> why it cannot do its work."""

    def refuses(self, script):
        """Say what was set."""
        return self.refused.get(script, "")

    def nvml(self):
        """Have no driver."""
        message = "no NVIDIA driver"
        raise Unmeasurable(message)


class LoadedWorld(World):
    """A world in which everything is there."""

    def has(self, tool):
        """Have everything."""
        return True


PROFILE = Profile(name="t", title="t", devices={"gpu": ("gpu0", "gpu1"), "host": ("host",)}, lines={})


def bench(*probes, world=None, profile=PROFILE, recorded=None):
    """Return a bench over the probes, and its journal."""
    journal = Journal()
    return Bench(profile, Catalogue(probes), journal, World() if world is None else world, recorded), journal


def counted(outcomes):
    """Return a measure function that yields outcomes, and the list of its calls."""
    calls = []

    def measure(site):
        calls.append(site.device)
        for outcome in outcomes(site):
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    return measure, calls


def test_a_probe_runs_once_per_device_whoever_asks():
    """Asking for two metrics twice on two devices runs the probe twice in all."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0), site.measured(B, 2.0)])
    table, journal = bench(Probe("x", "gpu", "gpu", (A, B), measure))
    values = [table.outcome(m, d).value for m in ("x.a", "x.b") for d in ("gpu0", "gpu1", "gpu0")]
    assert values == [1.0] * 3 + [2.0] * 3
    assert calls == ["gpu0", "gpu1"]
    assert len(journal.outcomes) == 4


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Measurement("x.a", "gpu0", 1.0, "W", note=3), "no outcome"),
        (Measurement("x.a", "gpu0", None, "W"), "no outcome"),
        (Measurement("x.a", "gpu0", 1.0, "W", "guessed"), "no outcome"),
        (Measurement("x.a", "gpu7", 1.0, "W"), "nobody ordered"),
        (Measurement("x.b", "gpu0", 1.0, "W"), "does not declare"),
        (Measurement("x.a", "gpu0", 1.0, "W", "simulated"), "on a machine that it measures"),
        ("not an outcome", "no outcome"),
    ],
)
def test_what_is_no_believable_outcome_is_an_absent_value(outcome, reason):
    """Wrong types, foreign devices and a provenance that does not fit never reach the table as values."""
    table, journal = bench(Probe("x", "gpu", "gpu", (A,), counted(lambda _: [outcome])[0]))
    assert reason in table.outcome("x.a", "gpu0").reason
    assert not [o for o in journal.outcomes if isinstance(o, Measurement)]


def test_an_absence_without_a_reason_is_still_one_and_can_be_recorded():
    """A probe that says nothing about why leaves an absent value that survives the evidence."""
    table, _ = bench(Probe("x", "gpu", "gpu", (A,), counted(lambda _: [NotMeasured("x.a", "gpu0", "")])[0]))
    outcome = table.outcome("x.a", "gpu0")
    assert record_outcome(outcome_record(outcome)) == outcome


def test_two_values_for_one_place_are_none():
    """A probe that reports a metric twice is believed in neither, and both stand in the evidence."""
    table, journal = bench(
        Probe("x", "gpu", "gpu", (A,), counted(lambda site: [site.measured(A, 1.0), site.measured(A, 500.0)])[0])
    )
    assert "more than once" in table.outcome("x.a", "gpu0").reason
    assert [o.value for o in journal.outcomes] == [1.0, 500.0]


def test_a_value_is_written_down_before_it_is_known():
    """What cannot be journaled is not in the table either."""

    class Full(Journal):
        def outcome(self, outcome):
            if isinstance(outcome, Measurement):
                message = "no room"
                raise OSError(message)

    probe = Probe("x", "gpu", "gpu", (A,), counted(lambda site: [site.measured(A, 1.0)])[0])
    table = Bench(PROFILE, Catalogue([probe]), Full(), World())
    assert "no room" in table.outcome("x.a", "gpu0").reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unmeasurable("the card is gone"), "the card is gone"), (ZeroDivisionError("boom"), "ZeroDivisionError: boom")],
)
def test_a_failure_is_remembered_and_gives_every_open_metric_its_reason(error, reason):
    """What was measured before the failure stays; the rest has the failure as reason; nobody retries."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0), error])
    table, journal = bench(Probe("x", "gpu", "gpu", (A, B), measure))
    assert table.outcome("x.a", "gpu0").value == 1.0
    for _ in range(2):
        assert reason in table.outcome("x.b", "gpu0").reason
    assert calls == ["gpu0"]
    assert sum(isinstance(o, NotMeasured) for o in journal.outcomes) == 1


def test_an_interruption_is_remembered_and_passed_on():
    """A timeout or Ctrl-C inside a probe goes on upwards, and the probe is not started again."""
    measure, calls = counted(lambda _: [KeyboardInterrupt()])
    table, journal = bench(Probe("x", "gpu", "gpu", (A,), measure))
    with pytest.raises(KeyboardInterrupt):
        table.outcome("x.a", "gpu0")
    assert "KeyboardInterrupt" in table.outcome("x.a", "gpu0").reason
    assert calls == ["gpu0"]
    assert journal.attached


def test_what_a_probe_does_not_report_is_named():
    """A probe that ends without a metric leaves a reason, not a gap."""
    table, _ = bench(Probe("x", "gpu", "gpu", (A, B), counted(lambda site: [site.measured(A, 1.0)])[0]))
    assert table.outcome("x.b", "gpu0").reason == "x did not report it"


def test_a_probe_may_not_yield_what_it_does_not_declare():
    """An undeclared metric is a failure of the probe, and no measurement."""
    table, _ = bench(Probe("x", "gpu", "gpu", (A,), counted(lambda site: [site.measured(B, 1.0)])[0]))
    assert "does not declare" in table.outcome("x.a", "gpu0").reason


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"measure": None}, NO_METHOD),
        ({"tools": ("fio",)}, "fio not found; install with: apt-get install fio"),
        ({"driver": True}, "no NVIDIA driver"),
    ],
)
def test_what_cannot_run_here_says_why_and_is_not_started(more, reason):
    """A probe without method, tool or driver is never started; the reason names the remedy."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0)])
    table, _ = bench(Probe("x", "gpu", "gpu", (A,), **{"measure": measure, **more}))
    assert table.outcome("x.a", "gpu0").reason.startswith(reason)
    assert calls == []


def test_a_load_that_the_machine_refuses_says_why_and_is_not_started():
    """One of a probe's load scripts that cannot do its work here keeps the probe from starting; others run."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0)])
    world = World()
    world.loads, world.refused = frozenset({"telemetry", "burn"}), {"burn": "torch has no kernels for this card"}
    table, _ = bench(
        Probe("x", "gpu", "gpu", (A,), measure, loads=("telemetry", "burn")),
        Probe("y", "gpu", "gpu", (B,), lambda site: [site.measured(B, 2.0)], loads=("telemetry",)),
        world=world,
    )
    assert table.outcome("x.a", "gpu0").reason == "torch has no kernels for this card"
    assert calls == []
    assert table.outcome("x.b", "gpu0").value == 2.0


def test_a_held_load_is_not_started_and_others_are():
    """While loads are held back, what only reads still runs, and a derivation starts nothing."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0)])
    reading = Metric("y.c", "c", "W", "gpu")
    derived = Metric("z.d", "d", "W", "gpu", derive=lambda inputs: inputs.get("x.a"))
    table, _ = bench(
        Probe("x", "gpu", "gpu", (A,), measure, load=True),
        Probe("y", "idle", "gpu", (reading,), lambda site: [site.measured(reading, 3.0)]),
        Probe("z", "gpu", "gpu", (derived,)),
    )
    table.hold = "held"
    assert table.outcome("x.a", "gpu0").reason == "held"
    assert "held" in table.outcome("z.d", "gpu0").reason
    assert table.outcome("y.c", "gpu0").value == 3.0
    assert calls == []


def test_a_replay_never_falls_through_to_the_machine():
    """Without a world, what the recording does not hold is "not recorded"."""
    measure, calls = counted(lambda site: [site.measured(A, 1.0)])
    recorded = {("x.a", "gpu0"): Measurement("x.a", "gpu0", 7.0, "W", "published")}
    table = Bench(PROFILE, Catalogue([Probe("x", "gpu", "gpu", (A, B), measure)]), Journal(), None, recorded)
    assert table.outcome("x.a", "gpu0").value == 7.0
    assert table.outcome("x.a", "gpu1").reason == "not recorded"
    assert table.outcome("x.b", "gpu0").reason == "not recorded"
    assert calls == []


def test_a_derived_metric_is_calculated_even_from_a_recording():
    """A recorded derived value is not believed: it follows from its inputs, or has their reason."""
    total = Metric(
        "x.sum", "sum", "W", "gpu", derive=lambda i: Measurement("x.sum", i.device, i.number("x.a") * 2, "W")
    )
    recorded = {
        ("x.a", "gpu0"): Measurement("x.a", "gpu0", 7.0, "W"),
        ("x.sum", "gpu0"): Measurement("x.sum", "gpu0", 99.0, "W"),
    }
    table = Bench(PROFILE, Catalogue([Probe("x", "gpu", "gpu", (A, total))]), Journal(), None, recorded)
    assert table.outcome("x.sum", "gpu0").value == 14.0
    assert table.outcome("x.sum", "gpu1").reason == "needs x.a: not recorded"


@pytest.mark.parametrize("value", ["text", True, 0.0])
def test_a_derivation_that_cannot_be_is_a_reason(value):
    """Text where a number is needed, or a division by zero, is an absent value with its reason."""
    share = Metric(
        "x.r", "r", "ratio", "gpu", derive=lambda i: Measurement("x.r", i.device, 1 / i.number("x.a"), "ratio")
    )
    recorded = {("x.a", "gpu0"): Measurement("x.a", "gpu0", value, "W")}
    table = Bench(PROFILE, Catalogue([Probe("x", "gpu", "gpu", (A, share))]), Journal(), None, recorded)
    assert isinstance(table.outcome("x.r", "gpu0"), NotMeasured)


def test_a_probe_of_the_host_fills_the_table_for_every_device():
    """A probe that acts on all GPUs at once runs once, and a GPU it left out has a reason."""
    measure, calls = counted(lambda _: [Measurement("x.a", "gpu0", 5.0, "W")])
    table, _ = bench(Probe("x", "gpus", "host", (A,), measure))
    assert table.outcome("x.a", "gpu0").value == 5.0
    assert table.outcome("x.a", "gpu1").reason == "x did not report it"
    assert calls == ["host"]


def test_an_attested_value_names_who_looked():
    """An attestation stands in the table as such, and keeps the probe from being asked."""
    attested = Attestation.model_validate_json(
        '{"line":"x.a","device":"gpu0","value":3,"who":"J. Roe","when":"2026-11-23","looked_at":"label"}'
    )
    table, _ = bench(Probe("x", "gpu", "gpu", (A,)), profile=PROFILE.model_copy(update={"attested": (attested,)}))
    outcome = table.outcome("x.a", "gpu0")
    assert (outcome.value, outcome.provenance) == (3, "attested")
    assert "J. Roe" in outcome.note


def test_a_reading_of_the_start_that_fails_is_its_probes_failure():
    """Whatever goes wrong at the start of the run becomes the reason of the lines that need it; the run goes on."""

    def measure(site):
        raise site.before

    before = {"x": lambda site: 1 / 0}
    table, journal = bench(Probe("x", "final", "gpu", (A,), measure, before=before["x"]), world=LoadedWorld())
    table.begin()
    assert "x failed at the start of the run: ZeroDivisionError" in table.outcome("x.a", "gpu0").reason
    assert any("ZeroDivisionError" in text for _, text in journal.attached)


def test_a_device_that_was_not_ordered_is_absent():
    """Asking for a GPU that the profile does not have is an absent value."""
    table, _ = bench(Probe("x", "gpus", "host", (A,), counted(lambda _: [])[0]))
    assert table.outcome("x.a", "gpu9").reason == "the profile has no gpu9"


@pytest.mark.parametrize(
    ("probes", "words"),
    [
        ((Probe("x", "gpu", "gpu", (A,)), Probe("x", "gpu", "gpu", (B,))), "probe x is declared twice"),
        ((Probe("x", "gpu", "gpu", (A,)), Probe("y", "gpu", "gpu", (A,))), "metric x.a is declared by x and by y"),
    ],
)
def test_a_name_is_declared_once(probes, words):
    """Two probes of one name, or one metric of two probes, are bad input."""
    with pytest.raises(InputError, match=words):
        Catalogue(probes)


@pytest.mark.parametrize(("unit", "kind", "near"), [("TFLOP", "gpu", "TFLOPS"), ("W", "gpus", "gpu")])
def test_a_metric_outside_the_vocabulary_is_bad_input(unit, kind, near):
    """An unknown unit or device kind is refused with the nearest known one."""
    with pytest.raises(InputError, match=near):
        Metric("x.a", "a", unit, kind)
