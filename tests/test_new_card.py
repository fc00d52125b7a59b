"""A card that the project does not know: a file of facts, and nothing else, gives it every line and a rehearsal."""

import pytest

from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.probe import Catalogue
from pytest_gpuaccept.probes import SHIPPED as PROBES
from pytest_gpuaccept.run import start
from pytest_gpuaccept.simulate import Simulation, simulated


@pytest.fixture
def sign_off(tmp_path):
    """Return a sign-off of a simulated machine of a composed profile."""

    def signed(name, scenario="healthy"):
        catalogue = Catalogue(PROBES)
        profile = load_profile(name, catalogue, tmp_path)
        source = simulated(profile, scenario, tmp_path)
        run = start(profile, catalogue, source.world.clock, source, None)
        run.bench.begin()
        return Simulation(run)

    return signed


def new_card(tmp_path):
    """Write the facts of an RTX 5090 under another name and id, as its successor's."""
    facts = (SHIPPED / "thresholds/cards/rtx5090.toml").read_text()
    for old, new in (("RTX 5090", "RTX 6090"), ("rtx5090", "rtx6090"), ('"5090"', '"6090"'), ("rtx-5090", "rtx-6090"),
                     ('pci_device_id = "2b85"', 'pci_device_id = "2f04"')):  # fmt: skip
        facts = facts.replace(old, new)
    (tmp_path / "thresholds/cards").mkdir(parents=True)
    (tmp_path / "thresholds/cards/rtx6090.toml").write_text(facts)


def test_the_rtx_5090_is_such_a_file(sign_off):
    """The shipped card of the newest series has every line of a GPU, and a healthy machine of it is accepted."""
    machine = sign_off("2xrtx5090")
    assert machine.blocking() == []
    assert {v.verdict for (line, _), v in machine.verdicts().items() if line.startswith("gpu.burn.")} == {"PASS"}


def test_a_card_is_added_by_a_file_of_facts(tmp_path, sign_off):
    """Same lines as its model, limits from its own facts, no word of code."""
    new_card(tmp_path)
    machine = sign_off("2xrtx6090")
    assert machine.blocking() == []
    assert machine.verdict("gpu.name", "gpu1").value == "NVIDIA GeForce RTX 6090"
    assert machine.verdicts().keys() == sign_off("2xrtx5090").verdicts().keys()


def test_what_is_amiss_on_a_new_card_is_found(tmp_path, sign_off):
    """Its lines can fail like any other's."""
    new_card(tmp_path)
    machine = sign_off("2xrtx6090", "healthy,fault=gpu1.pcie.width:8")
    assert machine.verdict("gpu.pcie.width", "gpu1").verdict == "FAIL"
    assert machine.verdict("gpu.pcie.width", "gpu0").verdict == "PASS"
