"""Loads on all cards at once: begun together, ended together, and what they wrote kept whatever happens."""

import json

import pytest

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import Site
from pytest_gpuaccept.probes.cards import cards
from pytest_gpuaccept.probes.gpus.together import READY_S, run_together
from pytest_gpuaccept.sim import world as simulated
from pytest_gpuaccept.sim.scenario import load_scenario
from pytest_gpuaccept.sim.world import SimWorld

JOB = {"kinds": ["h2d"], "samples": 9, "sample_s": 0.3, "together": 1.0}
"""Ten copies a second apart: ten seconds of load."""
KEPT = ["test: telemetry", "test: gpu0", "test: gpu1"]


@pytest.fixture(scope="module")
def two(catalogue):
    """Return the profile of two cards."""
    return load_profile("2xrtx4090", catalogue, SHIPPED)


@pytest.fixture
def where(two):
    """Return a site on a simulated machine, with all that is attached by name in its memory."""
    return planted(two, "healthy")


def planted(two, text):
    """Return the site of a scenario."""
    world, attached = SimWorld(two, load_scenario(text, SHIPPED, SHIPPED / "scenarios")), {}
    attach = lambda name, text: attached.update({name: text}) or ""  # noqa: E731 - a stand-in
    return Site(world, two, "host", {}, attach, memory={"attached": attached})


def together(where, meanwhile=lambda guard: guard.wait(60.0)):
    """Copy on all cards, telemetry beside it, and return what is known then."""
    return run_together(where, "test", cards(where), "copies", JOB, watched={"period_s": 0.5}, meanwhile=meanwhile)


def kept(where):
    """Return the records in the evidence, by name."""
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in where.memory["attached"].items()}


def begun(records):
    """Return the times at which copies of a load began."""
    return [record["t"] for record in records if record["kind"] in ("warm_up", "copy")]


def at_rest(where):
    """Say whether no load and no telemetry is left on the machine."""
    return not where.world.machine.scripts and not where.world.machine.running


def after(where, seconds, error):
    """Return a `meanwhile` that raises after some seconds of load."""

    def waits(_guard):
        where.world.clock.sleep(seconds)
        raise error

    return waits


def slow_to_load(monkeypatch, uuid, seconds):
    """Let the load of one card take its time before it is ready."""
    copies = simulated.SCRIPTS["copies"]

    def script(machine, params, clock):
        if params["uuid"] == uuid:
            clock.sleep(seconds)
            yield {"kind": "loaded"}
        yield {"kind": "loading"}
        yield from copies(machine, params, clock)

    monkeypatch.setitem(simulated.SCRIPTS, "copies", script)


def test_all_cards_begin_at_one_moment_beside_telemetry(where):
    """The first copy of each, and what goes on meanwhile, is at the common start; sensors are read from before it."""
    moments = []

    def waits(guard):
        moments.append(where.world.clock.monotonic())
        return guard.wait(60.0)

    ran = together(where, waits)
    assert moments == [pytest.approx(ran.at)]
    assert [begun(ran.records[device])[0] for device in ("gpu0", "gpu1")] == [ran.at, ran.at]
    assert [len(begun(ran.records[device])) for device in ("gpu0", "gpu1")] == [10, 10]
    assert {sample["uuid"] for sample in ran.samples} == {own.uuid for own in cards(where).values()}
    assert ran.samples[0]["t"] < ran.at < ran.at + 9.3 <= ran.samples[-1]["t"] + 0.5
    assert ran.died == {}
    assert kept(where) == dict(zip(KEPT, [ran.samples, *ran.records.values()], strict=True))
    assert at_rest(where)


@pytest.mark.parametrize(("seconds", "copied"), [(5.0, 0), (12.6, 3)])
def test_an_interrupt_keeps_what_was_written(where, monkeypatch, seconds, copied):
    """Ctrl-C while a load gets ready or while all run ends them, and leaves their records in the evidence."""
    slow_to_load(monkeypatch, cards(where)["gpu1"].uuid, 10.0)
    sleep = where.world.clock.sleep

    def interrupted(asked):
        left = seconds - where.world.clock.monotonic()
        sleep(min(asked, left))
        if asked >= left:
            raise KeyboardInterrupt

    where.world.clock.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        together(where)
    written = kept(where)
    assert list(written) == KEPT
    assert [len(begun(written[name])) for name in KEPT[1:]] == [copied, copied]
    assert (written["test: gpu0"][0]["kind"], written["test: gpu1"][0]["kind"]) == ("loading", "loaded")
    assert written["test: telemetry"][-1]["t"] == pytest.approx(seconds, abs=0.5)
    assert at_rest(where)


def test_telemetry_that_died_is_every_cards_reason(where):
    """Nobody watched to the end: each load has that reason, or its own, and all that was written stays."""

    def dies(guard):
        (watch,) = (script for script in where.world.machine.scripts if script.name == "telemetry")
        where.world.clock.sleep(5.0)
        watch.ended, watch.death = True, "telemetry died of SIGKILL"
        where.world.clock.sleep(6.0)
        assert guard.ends("cut") == {}
        return {"gpu1": "its own reason"}

    ran = together(where, dies)
    assert ran.died == {"gpu0": "telemetry died of SIGKILL", "gpu1": "its own reason"}
    assert [len(begun(records)) for records in ran.records.values()] == [10, 10]
    assert 5.0 < ran.samples[-1]["t"] < 7.0
    assert kept(where) == dict(zip(KEPT, [ran.samples, *ran.records.values()], strict=True))


@pytest.mark.parametrize("late", [1.0, 100.0])
def test_a_load_left_behind_does_not_start(where, monkeypatch, late):
    """One that gets ready after the time for that is ended, and the others go without it, guarded by themselves."""
    slow_to_load(monkeypatch, cards(where)["gpu1"].uuid, READY_S + late)
    guarded = []

    def waits(guard):
        guarded.extend([*guard.loads, *guard.cards])
        where.world.clock.sleep(late)
        return guard.wait(60.0)

    ran = together(where, waits)
    assert ran.died == {"gpu1": "it was not ready after 300 s"}
    assert ran.records["gpu1"] == [{"kind": "loaded"}]
    assert guarded == ["gpu0", "gpu0"]
    assert READY_S < begun(ran.records["gpu0"])[0] == ran.at
    assert kept(where)["test: gpu1"] == [{"kind": "loaded"}]


def test_a_load_that_is_slow_is_waited_for(where, monkeypatch):
    """No card begins alone: the common start is behind the last one that gets ready."""
    slow_to_load(monkeypatch, cards(where)["gpu1"].uuid, READY_S - 10.0)
    ran = together(where)
    assert ran.died == {}
    assert READY_S - 10.0 < ran.at < READY_S
    assert [begun(records)[0] for records in ran.records.values()] == [ran.at, ran.at]


@pytest.mark.parametrize(
    ("seconds", "copied", "died"), [(2.2, 3, {"gpu0": "stress-ng died", "gpu1": "stress-ng died"}), (12.0, 10, {})]
)
def test_what_goes_on_meanwhile_ends_all_with_its_reason(where, seconds, copied, died):
    """Loads that still run when it fails are ended and have its reason; those that were over by then have none."""
    ran = together(where, after(where, seconds, Unmeasurable("stress-ng died")))
    assert ran.died == died
    assert [len(begun(records)) for records in ran.records.values()] == [copied, copied]
    assert list(kept(where)) == KEPT
    assert at_rest(where)


def test_a_load_that_died_keeps_its_own_reason(two):
    """What ends the others is not why a card's load died before."""
    where = planted(two, "healthy,fault=gpu1.lost@copies")
    ran = together(where, after(where, 3.0, Unmeasurable("stress-ng died")))
    assert ran.died["gpu0"] == "stress-ng died"
    assert ran.died["gpu1"].startswith("CUDA error on GPU-")
