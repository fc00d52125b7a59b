"""Tests with a simulated machine of their own: the marker, the fixture, what is refused."""

import re
import subprocess
import sys

import pytest

from pytest_gpuaccept.loader import SHIPPED

ORDER = 'title = "order"\ninherits = ["4x4090"]\n'


@pytest.fixture
def project(pytester):
    """Write a test file beside an order, and run pytest over it."""

    def run(body, *args):
        (pytester.path / "order.toml").write_text(ORDER)
        (pytester.path / "tests").mkdir(exist_ok=True)
        (pytester.path / "tests" / "test_contract.py").write_text(f"import pytest\n{body}")
        return pytester.runpytest("tests", "-p", "no:hypothesispytest", *args)

    return run


def test_a_test_has_a_machine_without_any_option(project):
    """The marker alone gives the faces a simulated machine, one item for each device."""
    body = '@pytest.mark.simulated("order.toml")\ndef test_it(gpu):\n    assert gpu.gemm().fp16.value > 150\n'
    project(body).assert_outcomes(passed=4)


def test_a_planted_fault_is_judged(project):
    """Verdict, decision and blocking lines are those of the machine that the marker describes."""
    project("""
@pytest.mark.simulated("order.toml", "healthy,fault=gpu2.pcie.width:8")
def test_narrow(simulated):
    assert simulated.verdict("gpu.pcie.width", "gpu2").verdict == "FAIL"
    assert simulated.verdict("gpu.pcie.width", "gpu1").verdict == "PASS"
    assert str(simulated.sign_off()) == "SIMULATED REJECTED"
    assert "gpu.pcie.width[gpu2]" in simulated.blocking()

@pytest.mark.simulated("order.toml", scenario="healthy,seed=5")
def test_healthy(simulated):
    assert simulated.blocking() == []
""").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("scenario", "outcomes"), [("healthy", {"passed": 4}), ("healthy,fault=gpu1.slow", {"failed": 1})]
)
def test_an_acceptance_test_is_tested_by_its_lines(scenario, outcomes, project):
    """A spec test on a simulated machine fails where its line fails, and its items are the lines."""
    body = f"""
@pytest.mark.simulated("order.toml", "{scenario}")
@pytest.mark.spec("gpu.gemm.fp16")
def test_ours(gpu, accept):
    accept(gpu.gemm())
"""
    result = project(body)
    assert result.parseoutcomes().items() >= outcomes.items()
    if "failed" in outcomes:
        result.stdout.fnmatch_lines(["*gpu.gemm.fp16[[]gpu1[]] FAIL: * TFLOPS, limit >= 150: outside by*"])


def test_every_test_has_a_machine_of_its_own(project):
    """What one test did to its machine's time and counters is not seen by the next."""
    project("""
seen = []

@pytest.mark.simulated("1xh100")
@pytest.mark.parametrize("n", [1, 2])
def test_apart(simulated, n):
    seen.append(simulated.verdict("gpu.gemm.fp16", "gpu0").value)
    assert len(set(seen)) == 1
""").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('"order.toml", "healty"', "no scenario 'healty' (did you mean 'healthy'?)"),
        ('"order.toml", "healthy,fault=gpu2.pcie.with:8"', "did you mean 'pcie.width'?"),
        (
            '"order.toml", "healthy,fault=gpu9.slow"',
            "this machine has no gpu9 (did you mean 'gpu3'?); it has cpu, host, gpu0",
        ),
        ('"order.toml", "healthy,fault=gpu2.pcie.width:7"', "pcie_width = 7: Input should be 1, 2, 4, 8 or 16"),
        ('"ordr.toml"', "profile 'ordr.toml': no such file"),
        ("", "takes a profile and, if it is not healthy, a scenario"),
        ('"order.toml", 7', "takes a profile and, if it is not healthy, a scenario"),
        ('"order.toml", machine="healthy"', "takes a profile and, if it is not healthy, a scenario"),
    ],
)
def test_a_marker_that_says_something_wrong_is_a_usage_error(mark, said, project):
    """Exit status 4, the test, what is wrong and the nearest known name; no traceback."""
    result = project(f"@pytest.mark.simulated({mark})\ndef test_it(simulated):\n    simulated.sign_off()\n")
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == 4
    assert said in text
    assert "tests/test_contract.py::test_it" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("spec", ["", '@pytest.mark.spec("gpu.gemm.fp16")\n'])
def test_a_simulated_test_is_no_part_of_a_sign_off(spec, project):
    """With --hw it is refused, whether it decides a line or not: its outcome says nothing of the machine at hand."""
    body = f'@pytest.mark.simulated("order.toml")\n{spec}def test_it(gpu):\n    assert gpu.gemm().fp16.value > 150\n'
    refused = project(body, "--hw=host", "--hw-go-on", "--hw-evidence=ev")
    assert refused.ret == 4
    assert "no part of a sign-off" in refused.stdout.str() + refused.stderr.str()


def test_a_line_that_nobody_expects_is_refused_with_the_nearest(project):
    """A mistyped line or device fails the test that asks for it."""
    result = project("""
@pytest.mark.simulated("order.toml")
@pytest.mark.parametrize("key", [("gpu.burn.error", "gpu2"), ("gpu.burn.errors", "gpu7")])
def test_typo(simulated, key):
    simulated.verdict(*key)
""")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*expects no gpu.burn.error*did you mean 'gpu.burn.errors*"])


def test_a_rejected_sign_off_is_false(project):
    """`assert simulated.sign_off()` fails on a machine that is not accepted."""
    mark = '@pytest.mark.simulated("order.toml", "healthy,fault=gpu2.slow")'
    body = f"{mark}\ndef test_it(simulated):\n    assert simulated.sign_off()\n"
    project(body).assert_outcomes(failed=1)


def test_the_fixture_without_the_marker_says_so(project):
    """There is no machine to be had by the fixture alone."""
    result = project("def test_it(simulated):\n    pass\n")
    result.assert_outcomes(errors=1)
    assert 'needs the marker beside it: @pytest.mark.simulated("4x4090")' in result.stdout.str()


def test_the_readmes_tests_run_as_written(project, request, pytester):
    """The tests of a team's CI in the README pass on the order that it shows."""
    readme = (request.config.rootpath / "README.md").read_text()
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", readme, re.DOTALL))
    result = project(blocks["tests/test_contract.py"].replace("import pytest\n", ""))
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 2 + 4 * 4


def test_without_the_marker_nothing_of_the_simulated_machine_is_loaded(pytester):
    """A plain pytest run imports neither the model nor numpy."""
    pytester.makepyfile(
        test_plain="""
        import sys

        def test_it():
            assert not [name for name in sys.modules if name.startswith(("pytest_gpuaccept.sim", "numpy"))]
    """
    )
    result = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:xdist")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "args",
    [
        ["pytest", "acceptance", "-q", "-p", "no:cacheprovider", "--hw=host", "--collect-only"],
        ["pytest_gpuaccept", "lint", "host"],
    ],
    ids=["live", "lint"],
)
def test_without_a_simulated_machine_the_model_is_not_loaded(args, tmp_path):
    """A live run and the commands about files carry neither the model nor numpy."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = {args!r}\n"
        "try:\n    runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "finally:\n    ours = [m for m in sys.modules if m == 'numpy' or m.startswith('pytest_gpuaccept.sim')]\n"
        "    print('LOADED', ours)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SHIPPED, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
