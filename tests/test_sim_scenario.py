"""Scenarios and machines built from them: mistakes name file and key, and a healthy machine is the ordered one."""

import contextlib
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED, load_profile
from pytest_gpuaccept.profile import DeviceFacts, Line
from pytest_gpuaccept.selfcheck import matrix
from pytest_gpuaccept.sim.build import build
from pytest_gpuaccept.sim.faults import FAULTS
from pytest_gpuaccept.sim.machine import When
from pytest_gpuaccept.sim.parts import PARTS
from pytest_gpuaccept.sim.scenario import Scenario, load_scenario

SCENARIOS = SHIPPED / "scenarios"
FUZZ = settings(
    deadline=None, database=None, max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
CARDS = sorted(file.stem for file in (SHIPPED / "thresholds" / "cards").glob("*.toml"))
BEYOND_FLOATS = "9" * 400
BEYOND_TEXT = f"0x{'f' * 5000}"
"""A number that Python refuses to write in decimal."""


def said(text, folder=Path("/nonexistent")):
    """Return the scenario of a text, its name looked for in `folder` and among the shipped ones."""
    return load_scenario(text, folder, SCENARIOS)


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a TOML text as a scenario file called mine.toml."""

    def scenario(text):
        (tmp_path / "mine.toml").write_text(text)
        return load_scenario("mine.toml", tmp_path, SCENARIOS)

    return scenario


# what may be said -----------------------------------------------------------------------------------


def test_nothing_said_is_the_healthy_machine():
    """An empty text is the scenario `healthy`, without faults."""
    for text in ("", "healthy"):
        assert (said(text).faults, said(text).parts, said(text).seed) == ((), {}, 0)


@pytest.mark.parametrize(
    ("text", "device", "name", "value", "when"),
    [
        ("gpu2.pcie.width", "gpu2", "pcie.width", 8, When()),
        ("gpu2.pcie.width:4", "gpu2", "pcie.width", 4, When()),
        ("gpu0.slow:1@120s", "gpu0", "slow", 1.0, When(from_s=120.0)),
        ("gpu0.slow@1.5s", "gpu0", "slow", 0.3, When(from_s=1.5)),
        ("gpu1.nan@>65C", "gpu1", "nan", "nan", When(above_c=65.0)),
        ("gpu1.bitflip@combined", "gpu1", "bitflip", 0.5, When(during="combined")),
        ("host.cudnn:'1.2'", "host", "cudnn", "1.2", When()),
        ("host.board:TRX50 SAGE", "host", "board", "TRX50 SAGE", When()),
        ("gpu0.lost:false", "gpu0", "lost", False, When()),
    ],
)
def test_the_short_form_says_device_fault_value_and_time(text, device, name, value, when):
    """`DEVICE.FAULT[:VALUE][@WHEN]` is one fault, its value as TOML reads it, else as text."""
    (fault,) = said(f"healthy,fault={text}").faults
    assert (fault.device, fault.fault.name, fault.value, fault.when) == (device, name, value, when)
    assert type(fault.value) is type(value)


def test_faults_and_seed_of_the_command_line_come_on_top(read, tmp_path):
    """The short form adds faults to those of the file, and its seed is the one that counts."""
    read('seed = 7\n[[fault]]\ndevice = "gpu0"\nname = "slow"\nfrom_s = 3\n')
    scenario = said("mine.toml, fault=gpu1.nan ,fault=gpu2.stripe,seed=12", tmp_path)
    assert scenario.seed == 12
    assert [(f.device, f.fault.name) for f in scenario.faults] == [
        ("gpu0", "slow"),
        ("gpu1", "nan"),
        ("gpu2", "stripe"),
    ]
    assert scenario.faults[0].when == When(from_s=3.0)
    assert said("mine.toml", tmp_path).seed == 7


def test_a_scenario_of_ones_own_goes_before_a_shipped_one(tmp_path):
    """A file in ./scenarios hides the shipped one of its name."""
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "healthy.toml").write_text("seed = 99\n")
    assert said("healthy", tmp_path).seed == 99


def test_a_fault_table_says_all_that_a_fault_can_be(read):
    """Device, name, value, load and rhythm stand in one table."""
    (fault,) = read(
        '[[fault]]\ndevice = "gpu1"\nname = "pcie.width"\nvalue = 4\nduring = "burn"\non_s = 2\noff_s = 3.5\n'
    ).faults
    assert fault.value == 4
    assert fault.when == When(during="burn", on_s=2.0, off_s=3.5)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.key)
def test_every_fault_of_the_catalogue_can_be_written_and_is_explained(fault):
    """Its own value and those set besides fit their parameters, and its page is a text."""
    device = {"gpu": "gpu0", "drive": "nvme0", "nic": "nic0"}.get(fault.part, fault.part)
    assert said(f"healthy,fault={device}.{fault.name}").faults[0].value == fault.value
    assert len(fault.page) > 20


# mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("helthy", ["no scenario 'helthy'", "did you mean 'healthy'?", "known: case-study, healthy"]),
        ("no/such.toml", ["no/such.toml", "No such file"]),
        ("healthy,fualt=gpu0.slow", ["'fualt=gpu0.slow'", "did you mean 'fault'?"]),
        ("healthy,seed=x", ["'seed=x'", "seed=NUMBER"]),
        ("healthy,seed=-1", ["'seed=-1'"]),
        ("healthy,seed=1234567890", ["'seed=1234567890'"]),
        ("healthy,", ["''", "fault=DEVICE.FAULT"]),
        ("healthy,fault=", ["fault ''", "gpu2.pcie.width:8@burn"]),
        ("healthy,fault=gpu2", ["fault 'gpu2'", "DEVICE.FAULT"]),
        ("healthy,fault=gpu2.slow@", ["fault 'gpu2.slow@'"]),
        ("healthy,fault=gup2.slow", ["no device 'gup2'", "did you mean 'gpu'?"]),
        ("healthy,fault=gpu2.slwo", ["no fault 'slwo' of a gpu", "did you mean 'slow'?"]),
        ("healthy,fault=nvme0.slow", ["no fault 'slow' of a drive"]),
        ("healthy,fault=gpu2.pcie.width:7", ["pcie_width = 7"]),
        ("healthy,fault=gpu2.pcie.width:x8", ["pcie_width = 'x8'"]),
        ("healthy,fault=gpu2.pcie.width:8.0", ["pcie_width = 8.0"]),
        ("healthy,fault=gpu2.pcie.width:true", ["pcie_width = True"]),
        ("healthy,fault=gpu2.slow:2", ["clock_loss = 2", "less than or equal to 1"]),
        ("healthy,fault=gpu2.slow:nan", ["clock_loss = nan", "finite"]),
        ("healthy,fault=gpu2.slow:", ["clock_loss = ''"]),
        ("healthy,fault=gpu2.xid:-1", ["xid = -1"]),
        ("healthy,fault=host.driver:1.2", ["driver = 1.2: Input should be a valid string"]),
        ("healthy,fault=gpu2.slow@brun", ["'brun' is no time", "did you mean 'burn'?"]),
        ("healthy,fault=gpu2.slow@-1s", ["'-1s' is no time", "120s"]),
        ("healthy,fault=gpu2.slow@>hotC", ["'>hotC' is no time", ">65C"]),
        ("healthy,fault=host.driver@>60C", ["above_c", "a host has none"]),
        pytest.param("x" * 300, ["cannot be read", "name too long"], id="long"),
        pytest.param("healthy,fault=gpu0.slow:" + "[" * 5000, ["clock_loss"], id="deep"),
        pytest.param("healthy,fault=gpu0.copy.h2d:" + BEYOND_FLOATS, ["h2d"], id="beyond floats"),
        pytest.param(
            "healthy,fault=gpu0.pcie.width:" + BEYOND_TEXT, ["cannot be read", "pcie.width"], id="beyond text"
        ),
    ],
)
def test_a_mistake_of_the_command_line_names_its_place_and_what_was_meant(text, names):
    """Every mistake is an InputError with the word that is wrong and the nearest that is right."""
    with pytest.raises(InputError) as caught:
        said(text)
    assert [name for name in names if name.lower() not in str(caught.value).lower()] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("seed = -1", ["seed: -1"]),
        ("seed = true", ["seed: True"]),
        ("seed = 1.0", ["seed: 1.0"]),
        ("seed =", ["Invalid value"]),
        ("[gup0]\nlost = true", ["gup0: no such key or part", "did you mean 'gpu'?"]),
        ("gpu0 = 3", ["gpu0: no such key or part"]),
        ("[gpu0]\nlimit = 3", ["gpu0", "no parameter 'limit'", "did you mean 'limit_w'?"]),
        ("[gpu0]\nlimit_w = -3", ["gpu0", "limit_w = -3"]),
        ("[gpu]\nlost = 1", ["gpu", "lost = 1"]),
        ("[cpu]\ncores = 1.5", ["cpu", "cores = 1.5"]),
        ("[host]\nflavour = 'closed'", ["host", "flavour = 'closed'", "'open' or 'proprietary'"]),
        ("[nvme0]\nread_mbs = 'fast'", ["nvme0", "read_mbs = 'fast'"]),
        ("fault = 3", ["fault: write [[fault]]"]),
        ("fault = [3]", ["fault: write [[fault]]"]),
        ("[[fault]]\ndevice = 'gpu0'", ["needs device and name"]),
        ("[[fault]]\nname = 'slow'", ["needs device and name"]),
        ("[[fault]]\ndevice = 0\nname = 'slow'", ["needs device and name"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nwhen = 3", ["unknown key 'when'"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nvlaue = 3", ["unknown key 'vlaue'", "did you mean 'value'?"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nduring = 'brun'", ["during = 'brun'", "did you mean 'burn'?"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nduring = 0", ["during = 0"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nduring = false", ["during = False"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nduring = []", ["during = []"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nfrom_s = 'soon'", ["from_s = 'soon'"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nfrom_s = -1", ["from_s = -1"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nfrom_s = true", ["from_s = True"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nabove_c = nan", ["above_c = nan"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\non_s = 3", ["on_s and off_s belong together"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\noff_s = 3", ["on_s and off_s belong together"]),
        ("[[fault]]\ndevice = 'gpu0'\nname = 'slow'\nvalue = [1]", ["clock_loss = [1]"]),
        ("[[fault]]\ndevice = 'nic0'\nname = 'flap'\nabove_c = 60", ["above_c", "a nic has none"]),
        pytest.param("x = " + "[" * 5000, ["recursion"], id="deep"),
        pytest.param(f"[gpu]\nh2d_gbs = {BEYOND_FLOATS}", [], id="beyond floats"),
        pytest.param(f"seed = {BEYOND_TEXT}", [], id="seed beyond text"),
        pytest.param(f"[gpu]\npcie_gen = {BEYOND_TEXT}", [], id="value beyond text"),
    ],
)
def test_a_mistake_of_a_file_names_file_and_key(read, text, names):
    """Every mistake is an InputError with the file, the key, and what it takes."""
    with pytest.raises(InputError) as caught:
        read(text)
    assert [name for name in ("mine.toml", *names) if name not in str(caught.value)] == []


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    """Bytes that are no UTF-8 are a mistake of the file."""
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"mine\.toml"):
        said("mine.toml", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fault=gpu4.slow", "fault slow: this machine has no gpu4 .*; it has cpu, host, gpu0, gpu1, gpu2, gpu3, nvme0"),
        ("fault=gpu00.slow", "no gpu00"),
        ("fault=gpu.slow", "no gpu "),
        ("fault=nvme7.error", "no nvme7"),
        ("fault=vllm3.slow", "no vllm3"),
    ],
)
def test_a_fault_on_a_device_that_the_machine_has_not_is_refused(profile, text, message):
    """A fault that would hit nothing is a mistake, not a healthy machine."""
    with pytest.raises(InputError, match=message):
        build(profile, said(f"healthy,{text}"))


@pytest.mark.parametrize("device", ["gpu9", "nvme7", "nvme", "nic3", "host0"])
def test_a_part_that_the_machine_has_not_is_refused(profile, read, device):
    """Parameters of a device that was not ordered are a mistake, the scenario's name beside it."""
    with pytest.raises(InputError, match=f"scenario mine.toml: this machine has no {device}"):
        build(profile, read(f"[{device}]\n"))


FAULT_TEXT = st.builds(
    "healthy,fault={}{}.{}{}{}".format,
    st.sampled_from(["gpu", "nvme", "nic", "host", "cpu", "vllm", ""]),
    st.sampled_from(["", "0", "99", "\u0663"]),
    st.one_of(st.sampled_from(sorted(fault.name for fault in FAULTS.values())), st.text(string.ascii_lowercase + "._")),
    st.one_of(st.just(""), st.text().map(":{}".format), st.integers().map(":{}".format), st.floats().map(":{}".format)),
    st.one_of(st.just(""), st.text().map("@{}".format), st.sampled_from(["@burn", "@3s", "@>40C"])),
)


@FUZZ
@given(text=st.one_of(st.text(), FAULT_TEXT, st.text().map("healthy,{}".format)))
@example(text="a\0b.toml")
@example(text="\ud800/x.toml")
@example(text="/")
def test_any_text_is_a_scenario_or_an_input_error(profile, text):
    """Whatever stands behind --hw-sim, a machine is built or a person is told what to correct."""
    with contextlib.suppress(InputError):
        build(profile, said(text))


TOML_WORDS = st.sampled_from(
    ["seed", "fault", "[gpu0]", "[gpu]", "[[fault]]", "device", "name", "value", "during", "=", "'gpu0'", "'slow'",
     "\n", "above_c", "from_s", "on_s", "off_s", "0", "1.5", "true", "[", "]", "{", "}", ".", ",", "limit_w",
     "[host]", "inf"]
)  # fmt: skip
TABLE = st.dictionaries(
    st.sampled_from(["limit_w", "lost", "pcie_width", "name", "flip", "x"]),
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(string.ascii_letters).map(repr)),
)


def as_toml(tables):
    """Write tables of scalars as TOML."""
    scalars = {True: "true", False: "false"}
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {scalars.get(v, v) if isinstance(v, bool) else v}\n" for key, v in of.items())
        for name, of in tables.items()
    )


@FUZZ
@given(
    text=st.one_of(
        st.text(),
        st.lists(TOML_WORDS, max_size=30).map(" ".join),
        st.dictionaries(st.sampled_from([*PARTS, "gpu0", "nvme0"]), TABLE).map(as_toml),
    )
)
def test_any_file_is_a_scenario_or_an_input_error(profile, tmp_path, text):
    """Whatever a file holds, a machine is built or a person is told what to correct."""
    (tmp_path / "mine.toml").write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(InputError):
        build(profile, load_scenario("mine.toml", tmp_path, SCENARIOS))


# what is built --------------------------------------------------------------------------------------


def test_kind_is_over_preset_device_over_kind_and_fault_over_device(profile, read):
    """The nearest word counts: card, then all GPUs, then one GPU, then its fault."""
    scenario = read("[gpu]\nlimit_w = 300\npcie_width = 8\n[gpu1]\nlimit_w = 310\n[gpu2]\nlimit_w = 320\n")
    gpus = [gpu.p for gpu in build(profile, scenario).gpus]
    assert [gpu.limit_w for gpu in gpus] == [300.0, 310.0, 320.0, 300.0]
    assert {gpu.pcie_width for gpu in gpus} == {8}
    assert gpus[0].default_limit_w == profile.card.facts.power_limit_w
    faulty = Scenario("faulty", 0, scenario.parts, said("healthy,fault=gpu2.power.limit").faults)
    assert [gpu.p.limit_w for gpu in build(profile, faulty).gpus] == [300.0, 310.0, 350.0, 300.0]


def test_a_fault_sets_what_belongs_to_it_besides_its_value(profile):
    """A fault of several parameters sets all of them, also with a value of one's own."""
    gpu = build(profile, said("healthy,fault=gpu1.target.high:95")).gpus[1].p
    assert (gpu.target_c, gpu.airflow) == (95.0, 1.9)


def test_the_machine_is_the_one_that_was_ordered(profile):
    """Names, versions and counts come from the order's lines, the interfaces and mounts from its devices."""
    machine = build(profile, said("healthy"))
    assert (machine.host.board_vendor, machine.host.board_name) == ("ASRockRack", "ROMED8-2T/BCM")
    assert (machine.host.os_id, machine.host.os_version) == ("ubuntu", "24.04")
    assert machine.host.psu == profile.lines["host.psu"].equals
    assert machine.vllm.version == profile.lines["vllm.version"].equals
    assert machine.cpu.dimms == 8
    assert machine.mounts == {"/mnt/nvme/models": "nvme0"}
    assert [gpu.p.name for gpu in machine.gpus] == [profile.card.name] * 4
    assert machine.bandwidth_gbs == profile.card.facts.memory_bandwidth_gbs


def test_what_no_simulated_part_can_be_is_told_before_anything_runs(profile):
    """An order whose words no simulated part takes is an InputError with device and parameter."""
    line = profile.lines["gpu.driver.flavour"].model_copy(update={"equals": "sealed"})
    strange = profile.model_copy(update={"lines": {**profile.lines, line.id: line}})
    with pytest.raises(InputError, match="host: no simulated one has flavour = 'sealed'"):
        build(strange, said("healthy"))


def test_one_of_several_ordered_names_is_the_first(profile):
    """Where the order leaves a choice, the healthy machine has the first one."""
    line = profile.lines["gpu.driver.version"].model_copy(update={"equals": None, "one_of": ("1.1", "2.2")})
    free = profile.model_copy(update={"lines": {**profile.lines, line.id: line}})
    assert build(free, said("healthy")).host.driver == "1.1"


def test_cards_of_one_machine_differ_a_little_and_the_same_in_every_run(profile):
    """Silicon, slots and copies vary by a few percent, from the seed alone."""
    rates = [[gpu.p.fp16_tflops for gpu in build(profile, said(f"healthy,seed={seed}")).gpus] for seed in (1, 1, 2)]
    assert rates[0] == rates[1]
    assert rates[0] != rates[2]
    assert len(set(rates[0])) == 4
    assert max(rates[0]) / min(rates[0]) < 1.1


def test_another_run_on_the_same_machine_has_its_silicon_and_other_noise(profile):
    """`noise` is which run it is: the parts stay, the noise does not."""
    first, other = (build(profile, said(f"healthy,noise={run}")) for run in (1, 2))
    assert [gpu.p for gpu in first.gpus] == [gpu.p for gpu in other.gpus]
    assert first.gpus[0].rng.random() != other.gpus[0].rng.random()


def with_drive(profile, gen, **floors):
    """Return the profile with floors of its drive, on a link of `gen` x4."""
    ids = {"read": "nvme.read.seq", "write": "nvme.write.seq", "iops": "nvme.read.rand"}
    lines = {
        ids[name]: Line(id=ids[name], unit="IOPS" if name == "iops" else "MB/s", source="order", min=floor)
        for name, floor in floors.items()
    }
    facts = DeviceFacts(mount="/mnt/nvme/models", pcie_gen=gen, pcie_width=4)
    return profile.model_copy(update={"lines": {**profile.lines, **lines}, "device": {"nvme0": facts}})


def test_a_drive_is_as_fast_as_was_ordered(profile):
    """Floors above the usual drive make it as much faster as they ask for, with room to pass."""
    drive = build(with_drive(profile, 5, read=9000, write=8000, iops=900_000), said("healthy")).drives["nvme0"]
    assert drive.read_mbs == pytest.approx(9000 / 0.85)
    assert drive.write_mbs == pytest.approx(8000 / 0.85)
    assert drive.read_iops == pytest.approx(900_000 / 0.85)


def test_a_drive_is_never_faster_than_its_link(profile):
    """Neither an order nor the usual drive goes over what the link carries."""
    drive = build(with_drive(profile, 3, read=3900), said("healthy")).drives["nvme0"]
    assert drive.read_mbs == drive.write_mbs == pytest.approx(0.95 * 0.985 * 4 * 1000)
    low = build(with_drive(profile, 4, read=100), said("healthy")).drives["nvme0"]
    assert low.read_mbs == 4589.0


def gpu_verdicts(profile, catalogue):
    """Return the verdicts other than PASS and NOT_APPLICABLE of the required GPU lines of a healthy machine."""
    judged = matrix.sign_off(profile, catalogue, "healthy")
    return {
        key: f"{verdict.verdict}: {verdict.reason}"
        for key, verdict in judged.items()
        if key[0].startswith("gpu") and profile.lines[key[0]].severity == "required"
        and verdict.verdict not in ("PASS", "NOT_APPLICABLE")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "card"), [*((count, card) for card in CARDS for count in (1, 2)), (8, "l40s")], ids=str
)
def test_a_healthy_machine_of_any_card_passes_what_is_required_of_its_gpus(catalogue, count, card):
    """Every card of the catalogue, alone and in company, meets its own lines."""
    made = load_profile(f"{count}x{card}", catalogue, SHIPPED)
    assert gpu_verdicts(made, catalogue) == {}


def test_the_judged_lines_are_there_to_be_judged(catalogue):
    """The check above has lines of rates, links, copies, burn and pairs to look at."""
    made = load_profile("2xrtx4090", catalogue, SHIPPED)
    lines = {line for line, _ in catalogue.expected(made) if made.lines[line].severity == "required"}
    assert {"gpu.gemm.fp16", "gpu.pcie.gen", "gpu.copy.h2d", "gpu.burn.errors", "gpu.count"} <= lines


@pytest.mark.parametrize(
    ("line", "limit", "value"),
    [
        ("host.memory.speed", 'min = 4800\nunit = "MT/s"', 4800),
        ("host.memory.installed", 'min = 1024\nunit = "GiB"', 1024),
        ("gpu.power.limit", 'equals = 400\nunit = "W"', 400),
    ],
)
def test_a_healthy_machine_has_what_was_ordered(line, limit, value, catalogue, tmp_path):
    """Memory and power limit follow the order, and the line passes."""
    order = f'title = "m"\ninherits = ["4x4090"]\n[line."{line}"]\n{limit}\nsource = "order"\n'
    (tmp_path / "mine.toml").write_text(order)
    mine = load_profile("mine.toml", catalogue, tmp_path)
    verdicts = [v for (name, _), v in matrix.sign_off(mine, catalogue, "healthy").items() if name == line]
    assert {v.verdict for v in verdicts} == {"PASS"}
    assert {v.value for v in verdicts} == {value}
