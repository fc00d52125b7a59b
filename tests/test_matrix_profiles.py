"""The fault matrix over every shipped profile: each line can fail, and alone.

A file of its own, for it takes longest.
"""

import pytest

from pytest_gpuaccept.loader import SHIPPED, known_profiles, load_profile
from pytest_gpuaccept.selfcheck import matrix
from pytest_gpuaccept.selfcheck.matrix import Bed
from pytest_gpuaccept.sim.faults import FAULTS

PROFILES = known_profiles(SHIPPED)
WHOLE = ("4x4090", "1xh100", "host")
"""Profiles in which every proof is planted: engines and several GPUs, one GPU, none. The others have no other kinds of
lines, so there each line is made to fail once; `gpuaccept matrix` plants all."""


@pytest.fixture(scope="module")
def beds(catalogue):
    """Every shipped profile on simulated machines, by name; what was judged once is kept."""
    return {name: Bed(load_profile(name, catalogue, SHIPPED), catalogue) for name in PROFILES}


@pytest.mark.parametrize("name", PROFILES)
def test_a_healthy_machine_passes_every_line(name, beds):
    """Before a fault is planted, nothing is in its way: no line that is not PASS or not applicable."""
    assert {v.verdict for v in beds[name].healthy.values()} <= {"PASS", "NOT_APPLICABLE"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROFILES)
def test_every_line_has_a_fault_that_makes_exactly_it_fail(name, beds):
    """Each line fails after its fault, which changes no line that the proof does not declare."""
    assert list(matrix.flaws(beds[name], once=name not in WHOLE)) == []


@pytest.mark.timeout(1800)
def test_the_documented_tables_are_those_of_today(beds, request):
    """docs/faults.md is what the command prints for 4x4090."""
    text = (request.config.rootpath / "docs" / "faults.md").read_text()
    assert text == matrix.document(beds["4x4090"])
    assert all(f"| `{name}` |" in text for name in FAULTS)
