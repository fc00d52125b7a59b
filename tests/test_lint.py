"""Profiles: how they are found, inherited and resolved, and what is refused with which words."""

import pytest

from pytest_gpuaccept.errors import InputError
from pytest_gpuaccept.loader import SHIPPED, known_profiles, load_profile

HEAD = 'title = "t"\ninherits = ["base-gpu"]\ncard = "rtx4090"\ngpus = 4\n'
LINE = '[line."gpu.gemm.fp16"]\nunit = "TFLOPS"\nsource = "s"\n'


def refused(catalogue, folder, name="mine"):
    """Return the text with which a profile is refused."""
    with pytest.raises(InputError) as caught:
        load_profile(name, catalogue, folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["1xh100", "1xh200", "4x4090", "4xpro6000", "8x4090", "8xl40", "host"])
def test_every_shipped_profile_is_without_mistake(name, catalogue, tmp_path):
    """Each shipped profile loads, from any folder, and asks for verdicts."""
    profile = load_profile(name, catalogue, tmp_path)
    assert name in known_profiles(tmp_path)
    assert list(catalogue.expected(profile))


def test_the_names_that_contracts_rely_on_exist(catalogue):
    """The fixed ids of the metrics, and the kinds of their devices, are what they always were."""
    fixed = """
    gpu.count gpu.gemm.fp16 gpu.gemm.fp32 gpu.gemm.efficiency
    gpu.copy.device gpu.copy.h2d gpu.copy.d2h gpu.copy.d2h_pageable
    gpu_pair.copy gpu.pcie.gen gpu.pcie.width gpu.burn.tflops
    gpu.burn.temperature gpu.burn.errors gpu.burn.throttle gpu.combined.tflops
    gpu.combined.temperature gpu.combined.errors gpu.combined.drop gpu.power.limit_uniform
    gpu.persistence gpu.aer.corrected gpu.aer.corrected_rate gpu.aer.uncorrected
    gpu.xid nic.flaps nvme.read.seq nvme.write.seq
    nvme.read.rand nvme.write.rand cpu.burn.errors cpu.burn.load
    vllm.kernel vllm.load vllm.single.decode vllm.batch.output
    vllm.roofline llamacpp.load llamacpp.prompt llamacpp.decode
    engines.cross
    """
    assert set(fixed.split()) <= catalogue.metrics.keys()
    assert {catalogue.metrics[name].kind for name in ("gpu.count", "gpu.power.limit_uniform", "engines.cross")} == {
        "host"
    }


@pytest.mark.parametrize(("edition", "device_id"), [("workstation", "2bb1"), ("maxq", "2bb4"), ("server", "2bb5")])
def test_the_editions_of_one_name_are_told_apart(edition, device_id, catalogue, tmp_path):
    """Each edition of the RTX PRO 6000 orders its own PCI device id."""
    assert load_profile(f"4xrtxpro6000-{edition}", catalogue, tmp_path).lines["gpu.pci_device_id"].equals == device_id


@pytest.mark.parametrize(
    "card",
    [
        "rtx4090", "rtx5090", "l40", "l40s", "rtxpro6000-workstation", "rtxpro6000-maxq", "rtxpro6000-server",
        "h100-sxm", "h100-pcie", "h200", "a100-sxm-80gb", "a100-pcie-80gb", "4090", "5090",
    ],
)  # fmt: skip
def test_any_count_of_any_card_composes_a_profile(card, catalogue, tmp_path):
    """`<N>x<card or alias>` is a profile, with the physics lines required."""
    profile = load_profile(f"3x{card}", catalogue, tmp_path)
    assert profile.devices["gpu"] == ("gpu0", "gpu1", "gpu2")
    assert profile.devices["gpu_pair"] == ("gpu0-gpu1", "gpu0-gpu2", "gpu1-gpu2")
    assert all(profile.lines[name].severity == "required" for name in ("gpu.gemm.efficiency", "gpu.copy.device"))


def test_cards_agree_with_their_own_arithmetic(catalogue, tmp_path):
    """Each card's FP16 datasheet rate is SMs x FLOP/clk/SM x clock within 2 %."""
    for name in ("rtx4090", "rtx5090", "l40", "l40s", "h100-sxm", "h100-pcie", "h200", "a100-sxm-80gb"):
        card = load_profile(f"1x{name}", catalogue, tmp_path).card
        assert card.tensor_ceiling(card.facts.boost_clock_mhz) == pytest.approx(card.facts.fp16_tflops, rel=0.02)


def test_the_4090_profiles_order_the_stock_power_limit(catalogue, tmp_path):
    """The power limit of the RTX 4090 profiles is 450 W."""
    for name in ("4x4090", "8x4090"):
        assert load_profile(name, catalogue, tmp_path).lines["gpu.power.limit"].equals == 450


def test_an_unverified_fact_makes_its_line_advisory_and_says_so(catalogue, tmp_path):
    """A limit that rests on a fact nobody confirmed is advisory, uncalibrated, and named unverified."""
    line = load_profile("8xl40", catalogue, tmp_path).lines["gpu.gemm.fp16"]
    assert (line.severity, line.uncalibrated) == ("advisory", True)
    assert "unverified" in line.source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mni = 150", ("thresholds/mine.toml", "gpu.gemm.fp16", "mni", "unknown key", "'min'")),
        ("min = 160\nmax = 150", ("min", "above max")),
        ("min = 150\nguard = -1", ("guard",)),
        ('min = 150\nguard = "2 TFLOPS"', ("guard", "percentage")),
        ("min = nan", ("min",)),
        ("min = true", ("min",)),
        ('min = "150"', ("min",)),
        ("min = 250", ("above", "can reach")),
        ("min = 40", ("24.2%", "cannot fail")),
        ("min = 0.17", ("cannot fail",)),
        ("equals = 150\nmin = 150", ("equals", "another kind of limit")),
        ("equals = 150\nguard = 1", ("guard", "exact")),
        ('equals = "fast"', ("'fast'", "TFLOPS")),
        ('min = "@card.gemm_floor"', ("not a fact", "gemm_fp16_floor_tflops")),
        ("min_fraction = 2", ("min_fraction",)),
        ("min = 150\nmin_fraction = 0.9", ("min_fraction", "no min beside it")),
        ('min = 150\ndevices = ["gpu4"]', ("gpu4", "'gpu3'")),
        ('min = 150\nseverity = "required"\nuncalibrated = true', ("severity", "advisory")),
        ('min = 150\nseverity = "must"', ("severity",)),
    ],
)
def test_a_bad_line_is_refused_with_its_place(text, words, catalogue, write):
    """The message names the file, the line's id and what is wrong with it."""
    message = refused(catalogue, write(HEAD + LINE + text))
    assert "gpu.gemm.fp16" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + '[line."gpu.gem.fp16"]\nmin = 1\nunit = "TFLOPS"\nsource = "s"', ("gpu.gem.fp16", "'gpu.gemm.fp16'")),
        (HEAD + '[line."gpu.gemm.fp16"]\nmin = 150\nunit = "TFLOP"\nsource = "s"', ("unit", "'TFLOP'", "'TFLOPS'")),
        (HEAD + '[line."gpu.gemm.fp16"]\nmin = 150\nunit = "TFLOPS"\nsource = ""', ("source",)),
        (HEAD + '[line."gpu.burn.temperature"]\nmax = 95\nunit = "C"\nsource = "s"', ("beyond", "shutdown at 89")),
        (HEAD + '[line."nvme.read.seq"]\nmin = 1\nunit = "MB/s"\nsource = "s"', ("orders no device", "nvme")),
        (HEAD + '[line."gpu.memory"]\nunit = "GiB"\nsource = "s"', ("gpu.memory", "states no limit")),
        (HEAD + '[line."gpu.xid"]\ndevices = []', ("devices", "decided nowhere")),
        (HEAD + '[line."gpu.name"]\none_of = []\nsource = "s"', ("one_of", "nothing could pass")),
        ('title = "t"', ("no line is required",)),
        (HEAD + '[line."gpu.xid"]\nid = "gpu.count"', ("key id", "unknown key")),
        (HEAD + '[line."gpu.burn.errors"]\nmin = 0\nsource = "s"', ("bad when it is high",)),
        (HEAD + '[line."gpu.burn.temperature"]\nmin = 0\nsource = "s"', ("bad when it is high",)),
        (HEAD + '[line."cpu.burn.load"]\nmin = 0\nsource = "s"', ("0 % cannot fail",)),
        (
            HEAD + '[line."nvme.size"]\nmin = -100\nunit = "GB"\nsource = "s"\n[devices]\nnvme = ["nvme0"]',
            ("cannot fail",),
        ),
        (HEAD + '[line."host.cpu.offline"]\nmax = -1\nunit = "count"\nsource = "s"', ("-1 count cannot be met",)),
        (HEAD + '[line."ram.burn.coverage"]\nmin = 500\nsource = "s"', ("500 % cannot be met",)),
        (HEAD + '[line."cpu.burn.temperature"]\nmax = 4000\nsource = "s"', ("beyond any part's shutdown at 125 C",)),
        (HEAD + '[line."gpu.gemm.efficiency"]\nmax = 1.0\nsource = "s"', ("needs this floor",)),
        (HEAD + '[line."gpu.gemm.efficiency"]\ndevices = ["gpu0"]', ("on every device",)),
        (HEAD + '[devices]\ngpu = ["gpu0"]', ("devices.gpu", "cannot be listed")),
        (HEAD + '[devices]\nnic = ["nic0", "nic0"]', ("more than once",)),
        (HEAD + '[effort.quick."cpu.burn"]\nseconds = 0.5', ("effort", "type")),
        (HEAD + '[params."cpu.burn"]\nseconds = 0.5', ("seconds", "type")),
        (HEAD + '[line."gpu.count"]\nequals = 0\nsource = "s"', ("gpu.count", "must equal the 4 GPUs")),
        (HEAD + "[[[[", ("cannot be read",)),
        (HEAD + "a = " + "[" * 5000, ("cannot be read",)),
        (HEAD.replace("gpus = 4", "gpus = 99"), ("gpus",)),
        ("", ("title", "missing")),
        (HEAD + '[params."cpu.burn"]\nsecond = 5', ("cpu.burn", "second", "'seconds'")),
        (HEAD + '[params."cpu.burn"]\nseconds = "5"', ("seconds", "type")),
        (HEAD + '[params."cpu.burn"]\nseconds = 0', ("above zero",)),
        (HEAD + '[params."cpu.bum"]\nseconds = 5', ("no such probe", "'cpu.burn'")),
        (HEAD + '[devices]\nnvme = ["ssd1"]', ("ssd1", "not a device id")),
        (HEAD + '[device.nvme7]\nmount = "/x"', ("nvme7", "not ordered")),
        (HEAD + "[effort.quik.x]\ny = 1", ("quik", "'quick'")),
        (HEAD.replace("base-gpu", "base-gpo"), ("inherits", "base-gpo")),
        (HEAD.replace("base-gpu", "mine"), ("inherits itself",)),
        (HEAD.replace("rtx4090", "rtx4080"), ("no card 'rtx4080'", "'rtx4090'")),
        (HEAD.replace("gpus = 4", "gpus = -1"), ("gpus",)),
        (HEAD.replace("gpus = 4", 'gpus = "4"'), ("gpus",)),
        ('title = "t"\ngpus = 1', ("key card: missing: which GPU was ordered? One of ",)),
        ('title = "t"\ntilte = "u"', ("tilte", "unknown key", "'title'")),
        ("title = 'unclosed", ("cannot be read",)),
    ],
)
def test_a_bad_profile_is_refused_with_its_place(text, words, catalogue, write):
    """Unknown names get the nearest known one; nothing is skipped silently."""
    message = refused(catalogue, write(text))
    assert all(word in message for word in words), message


def test_all_mistakes_are_told_at_once(catalogue, write):
    """Four different mistakes in one file are four lines of one message."""
    text = LINE + 'mni = 1\n[line."gpu.xit"]\nmax = 0\nunit = "count"\nsource = "s"\n[params.x]\ny = 1'
    message = refused(catalogue, write(HEAD + "foo = 1\n" + text))
    assert "4 mistake(s)" in message
    assert all(word in message for word in ("foo", "mni", "gpu.xit", "params"))


def test_an_unknown_profile_names_the_nearest(catalogue, tmp_path):
    """A name that is no profile, no path and no composition is refused with what is known."""
    assert "did you mean 'host'" in refused(catalogue, tmp_path, "hots")
    assert "did you mean '4090'" in refused(catalogue, tmp_path, "4x409O")
    assert "no such file" in refused(catalogue, tmp_path, "there/is/none.toml")


CARD = """
name = "NVIDIA TEST"
aliases = []
pci_device_id = "ffff"
lacks = []
unverified = []
[facts]
compute_capability = "9.0"
sm_count = 132
flop_per_clk_sm_fp16 = 4096
flop_per_clk_sm_fp32 = 256
boost_clock_mhz = 1830
fp16_tflops = 989.4
fp32_tflops = 67.0
memory_mib = 65536
memory_bandwidth_gbs = {bandwidth}
pcie_gen = 5
pcie_width = 16
power_limit_w = 700
temperature_limit_c = 87
gemm_fp16_floor_tflops = 680.0
[sources]
"""
FACTS = [
    line.split(" = ")[0] for line in CARD.partition("[facts]")[2].partition("[sources]")[0].split("\n") if " = " in line
]


@pytest.mark.parametrize(
    ("model", "bandwidth", "floor_mbs"),
    [
        ("L40", 864.0, 49_050),
        ("A100-SXM4-40GB", 1555.0, 137_500),
        ("H100 64 GB", 2000.0, 122_250),
        ("GH100", 3350.0, 127_500),
        ("H200", 4800.0, 2_333),
    ],
)
def test_the_five_slipped_dcgm_floors_are_refused(model, bandwidth, floor_mbs, catalogue, write):
    """Each memory-bandwidth floor that DCGM ships 10 to 1000 times too low cannot be stated here."""
    sources = "\n".join(f'{fact} = "test"' for fact in FACTS)
    folder = write(CARD.format(bandwidth=bandwidth) + sources, "cards/slipped.toml")
    floor = f'[line."gpu.copy.device"]\nmin = {floor_mbs / 1000}\nunit = "GB/s"\nsource = "DCGM, {model}"'
    write('title = "t"\ninherits = ["base-gpu"]\ncard = "slipped"\ngpus = 1\n' + floor)
    message = refused(catalogue, folder)
    assert "gpu.copy.device" in message
    assert "cannot fail" in message


def test_a_shared_base_does_not_undo_what_stands_above_it(catalogue, write):
    """Of two parents with one base, what the first adds survives the second."""
    write('title = "a"\ninherits = ["4x4090"]\n[line."gpu.gemm.fp16"]\nmin = 165\nsource = "a"\n', "a.toml")
    write('title = "b"\ninherits = ["4x4090"]\n[line."gpu.xid"]\nseverity = "advisory"\n', "b.toml")
    profile = load_profile("mine", catalogue, write('title = "t"\ninherits = ["a", "b"]\n'))
    assert (profile.lines["gpu.gemm.fp16"].min, profile.lines["gpu.xid"].severity) == (165, "advisory")


@pytest.mark.parametrize("name", ["99x4090", "65xl40", "0x4090", "x" * 5000])
def test_no_more_gpus_than_a_machine_holds(name, catalogue, tmp_path):
    """A composed profile has 1 to 64 GPUs; a name that is none is refused."""
    refused(catalogue, tmp_path, name)


@pytest.mark.parametrize("fact", ["pcie_gen = 9", "boost_clock_mhz = 0", "sm_count = -1", "fp16_tflops = inf"])
def test_a_card_with_an_impossible_fact_is_refused(fact, catalogue, write):
    """Facts of a card are within what can exist."""
    lines = [
        fact if line.startswith(fact.split(" = ")[0]) else line for line in CARD.format(bandwidth=1.0).splitlines()
    ]
    write("\n".join([*lines, *(f'{name} = "test"' for name in FACTS)]), "cards/odd.toml")
    folder = write('title = "t"\ninherits = ["base-gpu"]\ncard = "odd"\ngpus = 1\n')
    assert fact.split(" = ")[0] in refused(catalogue, folder)


def test_a_card_fact_without_a_source_is_refused(catalogue, write):
    """Every fact of a card names who says so."""
    write(CARD.format(bandwidth=2000.0), "cards/bare.toml")
    folder = write('title = "t"\ninherits = ["base-gpu"]\ncard = "bare"\ngpus = 1\n')
    assert "facts without a source" in refused(catalogue, folder)


def test_a_gpu_profile_cannot_do_without_the_physics_lines(catalogue, write):
    """The efficiency floors that follow from the card's facts can be neither dropped nor made advisory."""
    line = '[line."gpu.gemm.efficiency"]\nseverity = "advisory"\n'
    assert "follows from the card's facts" in refused(catalogue, write(HEAD + line))
    line = '[line."gpu.copy.device"]\nnot_applicable = "we do not care"\n'
    assert "follows from the card's facts" in refused(catalogue, write(HEAD + line))


def test_overriding_a_limit_takes_the_unit_and_nothing_else(catalogue, write):
    """A line with a new limit loses the old source and guard; one without keeps everything else."""
    text = HEAD + '[line."gpu.gemm.fp32"]\nmin = 60\nsource = "mine"\n[line."gpu.xid"]\nseverity = "advisory"\n'
    profile = load_profile("mine", catalogue, write(text))
    assert (profile.lines["gpu.gemm.fp32"].min, profile.lines["gpu.gemm.fp32"].guard) == (60, 0)
    assert (profile.lines["gpu.gemm.fp32"].source, profile.lines["gpu.gemm.fp32"].uncalibrated) == ("mine", False)
    assert (profile.lines["gpu.xid"].severity, profile.lines["gpu.xid"].max) == ("advisory", 0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('line = "gpu.xid"\ndevice = "gpu0"\nwho = "J. Roe"\nuntil = 2030-01-01', ("reason", "missing")),
        ('line = "gpu.xid"\ndevice = "gpu0"\nreason = "r"\nuntil = 2030-01-01', ("who", "missing")),
        ('line = "gpu.xid"\ndevice = "gpu0"\nreason = ""\nwho = "J. Roe"\nuntil = 2030-01-01', ("reason",)),
        ('line = "gpu.xit"\ndevice = "gpu0"\nreason = "r"\nwho = "w"\nuntil = 2030-01-01', ("gpu.xit", "'gpu.xid'")),
        ('line = "gpu.xid"\ndevice = "gpu9"\nreason = "r"\nwho = "w"\nuntil = 2030-01-01', ("gpu9",)),
        ('line = "gpu.xid"\ndevice = "gpu0"\nreason = "r"\nwho = "w"\nuntil = "soon"', ("until",)),
    ],
)
def test_a_waiver_needs_line_device_reason_name_and_date(entry, words, catalogue, write):
    """A waiver that does not say what, why, who and until when is refused."""
    write(HEAD)
    message = refused(catalogue, write("[[waiver]]\n" + entry, "mine.waivers.toml"))
    assert "mine.waivers.toml" in message or "gpu.xi" in message
    assert all(word in message for word in words), message


def test_effort_overrides_parameters_by_name(catalogue, tmp_path):
    """A quick run takes the profile's quick parameters over its standard ones."""
    standard = load_profile("host", catalogue, tmp_path)
    quick = load_profile("host", catalogue, tmp_path, "quick")
    assert (standard.params["cpu.burn"]["seconds"], quick.params["cpu.burn"]["seconds"]) == (60, 10)
    assert quick.params["nvme.fio"]["keep_free_gib"] == standard.params["nvme.fio"]["keep_free_gib"]


def test_the_digest_follows_the_content(catalogue, write):
    """Two loads of one profile have one digest; another limit has another."""
    folder = write(HEAD)
    first, second = (load_profile("mine", catalogue, folder).digest() for _ in range(2))
    write(HEAD + '[line."gpu.xid"]\nseverity = "advisory"\n')
    assert first == second != load_profile("mine", catalogue, folder).digest()


def test_an_effort_of_ones_own_leaves_the_inherited_ones(catalogue, tmp_path):
    """The shipped 4x4090 shortens its drive's jobs and lengthens nothing: its soak is that of every GPU machine."""
    soak, quick = (load_profile("4x4090", catalogue, tmp_path, effort) for effort in ("soak", "quick"))
    assert soak.params["gpu.burn"] == {"seconds": 600, "longest_seconds": 5400}
    assert quick.params["nvme.fio"]["seconds"] == 10
    assert quick.params["gpu.burn"]["seconds"] == 30


def test_two_cards_of_one_pci_device_id_or_alias_are_refused(catalogue, tmp_path):
    """A card copied from another's file and half changed would pass for the other one."""
    facts = (SHIPPED / "thresholds/cards/rtx5090.toml").read_text().replace("5090", "5080")
    (tmp_path / "thresholds/cards").mkdir(parents=True)
    (tmp_path / "thresholds/cards/rtx5080.toml").write_text(facts)
    with pytest.raises(InputError, match="rtx5090 has its PCI device id or an alias too"):
        load_profile("2xrtx5080", catalogue, tmp_path)
