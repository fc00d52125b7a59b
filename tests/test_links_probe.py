"""The PCIe link under load: every hop counts, and what cannot be seen is no reading."""

import contextlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.measurement import Measurement
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import Window, card
from pytest_gpuaccept.probes.gpus import links
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

OWN, PORT = "0000:01:00.0", "0000:00:01.1"
PARAMS = {"seconds": 4, "period_s": 0.1}


class Told(SimWorld):
    """A simulated machine whose telemetry passes through a function before the probe sees it."""

    changed = staticmethod(lambda sample: sample)

    @contextlib.contextmanager
    def start(self, script, params):
        """Start a load; what the poll wrote is changed when it is stopped."""
        with super().start(script, params) as load:
            if script != "telemetry":
                yield load
            else:
                yield SimpleNamespace(
                    records=load.records, stop=lambda: [self.changed(dict(sample)) for sample in load.stop()]
                )


class Virtual(Told):
    """A virtual machine: the GPU is there, its ports are not, and its own files only where `files`."""

    files = True

    def read(self, path):
        """Read a file; nothing is above the GPU."""
        if path.endswith("/../uevent"):
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return super().read(path)

    def changed(self, sample):
        """Return the sample without the GPU's own hop where its files are hidden."""
        return sample if self.files else sample | {"hops": [None], "failed": {"hop 0": "hidden"}}


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


def site(profile, text="healthy", world=Told):
    """Return a site on the first card of a simulated machine."""
    made = world(profile, load_scenario(text, SHIPPED, SHIPPED / "scenarios"))
    return Site(made, profile, "gpu0", PARAMS, lambda name, text: "", "simulated")


def measured(where):
    """Return the probe's outcomes by the last word of their metric."""
    return {outcome.metric.split(".")[-1]: outcome for outcome in links.links(where)}


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([4.0] * 80, 4.0),
        ([4.0] * 199 + [1.0], 4.0),
        ([4.0] * 100 + [1.0] + [4.0] * 98 + [1.0], 4.0),
        ([4.0] * 198 + [1.0, 1.0], 1.0),
        ([4.0] * 80 + [1.0], 1.0),
        ([4.0, 4.0, 1.0, 4.0, 1.0], 1.0),
        ([4.0] * 300 + [3.0, 1.0] + [4.0] * 300, 1.0),
        ([1.0] * 70 + [4.0] * 30, 1.0),
        ([1.0] * 50 + [4.0] * 50, 1.0),
        ([4.0], 4.0),
    ],
)
def test_a_link_is_as_fast_as_its_worst_two_samples(values, answer):
    """Low twice in a row, or in more than one of a hundred: that is the link; once in a while is a glitch."""
    assert links.worst(values) == answer


def test_changes_from_sample_to_sample_are_counted():
    """A link that goes down and comes back has changed twice."""
    assert links.transitions([4.0, 4.0, 1.0, 1.0, 4.0]) == 2
    assert links.transitions([4.0]) == 0


def test_the_hops_are_the_card_and_its_ports_up_to_the_root(two):
    """From the card upwards, as sysfs nests them."""
    where = site(two)
    assert links.hops(where, card(where, "gpu0")) == (OWN, PORT)


def test_ports_that_name_each_other_end_the_walk(two):
    """A walk ends where it has been, whatever the machine says."""
    where = site(two)
    where.world.read = lambda path: f"PCI_SLOT_NAME={OWN if PORT in path else PORT}"
    assert links.hops(where, card(where, "gpu0")) == (OWN, PORT)


def test_a_healthy_link_states_its_hops_and_its_load(two):
    """Generation and width of the order; what was looked at, that all agree, and that copies ran meanwhile."""
    seen = measured(site(two))
    assert (seen["gen"].value, seen["width"].value, seen["idle_gen"].value) == (4, 16, 1)
    for metric in ("gen", "width"):
        conditions = seen[metric].conditions
        assert conditions["hops"] == f"{OWN}, {PORT}"
        assert (conditions["worst_hop"], conditions["transitions"]) == ("all alike", 0)
        assert "samples were taken while copies ran, " in conditions["proof_of_load"]
        assert seen[metric].samples >= 30


def test_a_narrow_link_above_the_card_counts_although_nvml_shows_none(two):
    """The width is that of the worst hop, which is named."""
    width = measured(site(two, "healthy,fault=gpu0.pcie.port"))["width"]
    assert (width.value, width.conditions["worst_hop"]) == (4, PORT)


def test_a_link_that_falls_under_load_is_seen_with_its_changes(two):
    """The lowest generation counts, and how often it changed is said."""
    where = site(two, "healthy,fault=gpu0.pcie.drops:1.0")
    gen = measured(where)["gen"]
    assert (gen.value, gen.conditions["transitions"]) == (1, 2)


def test_one_narrow_sample_of_one_hop_is_a_link_that_lost_lanes(two):
    """Width does not change by itself: one sample is enough, and the note says how often it was seen."""
    where, number = site(two), iter(range(1000))

    def narrow(sample):
        return sample | {"hops": [[4, 16], [4, 8]]} if next(number) == 20 else sample

    where.world.changed = narrow
    width = measured(where)["width"]
    assert (width.value, width.conditions["worst_hop"]) == (8, PORT)
    assert width.note.startswith("8 in 1 of ")


def test_a_hop_that_cannot_be_read_leaves_no_reading(two):
    """A port that is there and says nothing might hide anything."""
    where = site(two)
    where.world.changed = lambda sample: sample | {
        "hops": [sample["hops"][0], None], "failed": {"hop 1": f"{PORT}: Permission denied"},
    }  # fmt: skip
    with pytest.raises(Unmeasurable, match=f"no gen {PORT} of gpu0 in the window: {PORT}: Permission denied"):
        measured(where)


@pytest.mark.parametrize("hops", [None, [], [[4, 16]], [[4, 16], [4]], [[4, 16], "4"], 4])
def test_samples_without_all_hops_are_no_reading(two, hops):
    """A hop that a sample does not hold was not seen."""
    where = site(two)
    where.world.changed = lambda sample: sample | {"hops": hops}
    with pytest.raises(Unmeasurable):
        measured(where)


def test_a_virtual_machine_shows_the_card_alone_and_says_so(two):
    """Where no port can be seen the card's own link is all there is, and the note says that."""
    seen = measured(site(two, world=Virtual))
    assert (seen["gen"].value, seen["width"].value) == (4, 16)
    assert f"NVML and {OWN}, and nothing of the links above" in seen["gen"].note
    assert seen["gen"].conditions["hops"] == OWN


def test_nvml_alone_is_said_to_be_alone(two):
    """Where not even the card's own files can be read NVML counts, and the note says that nothing else did."""
    where = site(two, world=Virtual)
    where.world.files = False
    seen = measured(where)
    assert (seen["gen"].value, seen["width"].value) == (4, 16)
    assert "in a virtual machine: NVML, and nothing of the links above" in seen["width"].note


def test_the_generation_at_idle_is_read_before_the_load_begins(two):
    """It is there also when the load is not."""
    where = site(two)
    outcomes = links.links(where)
    idle = next(outcomes)
    assert (idle.metric, idle.value, where.world.clock.monotonic()) == ("gpu.pcie.idle_gen", 1, 0.0)
    where.world.machine.gpus[0].p.lost = True
    with pytest.raises(Unmeasurable):
        next(outcomes)


@given(hops=st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_a_sample_says_of_its_hops_is_a_reading_or_unmeasurable(hops):
    """No record of a hop is anything but amounts or a reason."""
    sample = {"t": 0.5, "uuid": "GPU-0", "gen": 4, "width": 16, "hops": hops}
    seen = links.by_hop(Window("gpu0", [sample], 0.0, 1.0, 0.5), (OWN, PORT))
    for name in ("gen", "width"):
        for address in (OWN, PORT):
            with contextlib.suppress(Unmeasurable):
                assert seen.values(f"{name} {address}")[0] >= 0


def test_outcomes_are_measurements_of_the_declared_metrics(two):
    """Each declared metric has exactly one outcome."""
    outcomes = list(links.links(site(two)))
    assert all(isinstance(outcome, Measurement) for outcome in outcomes)
    assert sorted(outcome.metric for outcome in outcomes) == sorted(metric.id for metric in links.LINKS)
