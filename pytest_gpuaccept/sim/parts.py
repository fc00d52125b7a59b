"""The parts of a simulated machine: every parameter with its unit, range and default.

A parameter is what a scenario may override and what a fault changes. State that moves with time is
machine.py's. Defaults marked [E] are estimates; docs/simulation.md says where the others come from.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=10**6)]
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Celsius = Annotated[float, Field(ge=-40, le=150, allow_inf_nan=False)]
Watts = Annotated[float, Field(ge=0, le=2000, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Lanes = Literal[1, 2, 4, 8, 16]
Gen = Annotated[int, Field(ge=1, le=6)]


class Part(BaseModel):
    """Base of all parts: strict values, no unknown parameter."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Gpu(Part):
    """One GPU with its slot."""

    name: Text = "NVIDIA Simulated"
    pci_device_id: Annotated[str, Field(pattern="^[0-9a-f]{4}$")] = "2684"
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")] = "8.9"
    memory_mib: Annotated[int, Field(ge=1, le=10**6)] = 24564
    sm_count: Annotated[int, Field(ge=1, le=1000)] = 128
    flop_per_clk_sm_fp16: Annotated[int, Field(ge=1, le=100_000)] = 512
    present: bool = True
    lost: Annotated[bool, Field(description="fallen off the bus: NVML answers GPU_IS_LOST")] = False
    runs_on: Annotated[int, Field(ge=-1, le=63, description="GPU that a load for this one reaches; -1: itself")] = -1
    persistence: bool = True
    ecc: Annotated[bool, Field(description="reports ECC counters")] = False
    row_remap: Annotated[bool, Field(description="reports remapped rows, as every card with ECC does")] = False
    vbios: Text = "95.02.47.00.01"
    bar1_mib: Annotated[Count, Field(description="memory that the host sees; 0 for all of it (resizable BAR)")] = 0
    mig: Annotated[bool, Field(description="cut into slices")] = False
    compute_mode: Literal["default", "exclusive", "prohibited"] = "default"
    foreign_mib: Annotated[Count, Field(description="memory that somebody else's process has; 0 for nobody")] = 0
    left_mib: Annotated[Count, Field(description="memory that a load's process keeps when it should have ended")] = 0
    desktop_mib: Annotated[Count, Field(description="memory that a desktop has; 0 for none")] = 0
    processes_hidden: Annotated[bool, Field(description="a container hides the processes from NVML's list")] = False

    limit_w: Annotated[Watts, Field(description="power limit set")] = 450.0
    rated_limit_w: Annotated[Watts, Field(gt=0, description="limit at which the compute rates below hold")] = 450.0
    default_limit_w: Annotated[Watts, Field(description="power limit of the board after a reset")] = 450.0
    idle_w: Watts = 20.0
    overshoot: Annotated[Share, Field(description="single samples of the meter this share above the limit")] = 0.0
    over_limit: Annotated[Share, Field(description="share of its limit that the card draws above it")] = 0.0
    power_brake: Annotated[Share, Field(description="share of the power that an external brake takes away")] = 0.0

    resistance_c_per_w: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.0831
    airflow: Annotated[
        Factor, Field(description="multiplies the thermal resistance: 1 free, 2 blocked or fan dead")
    ] = 1.0
    tau_s: Annotated[float, Field(gt=0.2, le=1000, allow_inf_nan=False)] = 10.0
    target_c: Annotated[Celsius, Field(description="thermal target that the governor holds")] = 83.0
    shutdown_c: Celsius = 95.0

    fp16_tflops: Annotated[Rate, Field(description="FP16 product, FP32 accumulate, cold")] = 167.0
    fp32_tflops: Rate = 58.0
    bf16_tflops: Annotated[Rate, Field(description="BF16 product, FP32 accumulate, cold")] = 167.0
    tf32_tflops: Rate = 75.0
    fp8_tflops: Annotated[Rate, Field(description="0 for a card without FP8")] = 300.0
    sustained: Annotated[Share, Field(description="rate after minutes of load over the cold rate")] = 0.965
    tensor_efficiency: Annotated[Share, Field(gt=0, description="share of FLOP/clk/SM that the kernel reaches")] = 0.955
    slowdown: Annotated[Share, Field(description="share of every compute rate that is lost, at full clock")] = 0.0
    clock_loss: Annotated[Share, Field(description="share of the clock that is lost, and the rates with it")] = 0.0
    cpu_interference: Annotated[Share, Field(description="share of the rate that is lost while all CPUs work")] = 0.0
    accumulate: Annotated[Literal["fp32", "fp16"], Field(description="fp16 doubles the rate of GeForce cards")] = "fp32"
    load_starts: Annotated[bool, Field(description="a load that is started also reaches the GPU")] = True
    pulse: Annotated[Share, Field(description="share of each burn that runs at full rate, the rest at half")] = 1.0
    rate_noise: Annotated[Share, Field(description="standard deviation of a batch's rate")] = 0.002
    power_noise: Annotated[Share, Field(description="standard deviation of a power sample")] = 0.0015

    flips_per_s: Annotated[Factor, Field(description="wrong products per second under load")] = 0.0
    flip: Annotated[Literal["bit", "nan", "stripe"], Field(description="what a wrong product looks like")] = "bit"
    flip_bit: Annotated[int, Field(ge=0, le=15)] = 0
    flip_above_c: Annotated[Celsius, Field(description="products are wrong only above this temperature")] = -40.0
    always_wrong: Annotated[bool, Field(description="every product is wrong in the same way, the first included")] = (
        False
    )
    odd_shapes_wrong: Annotated[bool, Field(description="what is left of a sum's length over 8 is forgotten")] = False
    detector_blind: Annotated[bool, Field(description="writes do not land: what is put there to be found is not")] = (
        False
    )

    pcie_gen: Annotated[Gen, Field(description="generation under load")] = 4
    pcie_width: Lanes = 16
    card_gen: Annotated[Gen, Field(description="highest generation of the card itself")] = 4
    slot_gen: Annotated[Gen, Field(description="highest generation of the slot")] = 4
    link_rise_s: Annotated[Seconds, Field(description="time from load to full generation")] = 0.2
    link_drops_s: Annotated[Seconds, Field(description="time at Gen1 in the middle of each load")] = 0.0
    port_gen: Annotated[
        int, Field(ge=0, le=6, description="generation of the link above the card's own; 0 as the card's")
    ] = 0
    port_width: Annotated[Literal[0, 1, 2, 4, 8, 16], Field(description="its lanes; 0 as the card's")] = 0
    step_event: Annotated[
        Literal["none", "lost", "xid", "link"],
        Field(description="what a load step does: off the bus, an Xid, the link at Gen1 until the step's end"),
    ] = "none"
    event_at_step: Annotated[Count, Field(description="load step at which it happens")] = 3
    h2d_gbs: Rate = 26.2
    d2h_gbs: Rate = 26.3
    pageable_gbs: Rate = 9.0
    both_share: Annotated[Share, Field(description="share of both directions' sum when both copy at once [E]")] = 0.9
    untouched_share: Annotated[Share, Field(description="share of the pageable rate into new pages [E]")] = 0.3
    uplink_share: Annotated[Share, Field(description="share of the link's rate left while other GPUs copy too")] = 1.0
    staged_gbs: Annotated[Rate, Field(description="copy to another GPU through the host")] = 20.5
    p2p: Annotated[
        Literal["ok", "chipset", "gpu", "topology", "regkey", "unsupported", "unknown"],
        Field(description="why the driver refuses peer access; ok where it offers it"),
    ] = "chipset"
    vram_gbs: Rate = 920.0
    copy_corrupts: Annotated[bool, Field(description="one byte of each copy arrives wrong")] = False
    vram_stuck: Annotated[bool, Field(description="one bit of the memory always reads 1")] = False
    vram_fades_s: Annotated[Seconds, Field(description="time after which one bit of memory is lost; 0: never")] = 0.0
    vram_alias: Annotated[bool, Field(description="two addresses reach the same word: a stuck address line")] = False
    vram_claim: Annotated[Share, Field(description="share of the free memory that can be claimed")] = 1.0
    crowd_corrupts: Annotated[bool, Field(description="one byte arrives wrong while other GPUs copy too")] = False

    aer_corrected_per_min: Annotated[
        float, Field(ge=0, le=6000, description="corrected PCIe errors per minute while the link is busy")
    ] = 0.0
    aer_kind: Annotated[Literal["RxErr", "BadTLP", "Rollover", "Timeout"], Field(description="what they are")] = "RxErr"
    aer_before: Annotated[Count, Field(description="corrected PCIe errors between boot and run")] = 0
    aer_reports: Annotated[bool, Field(description="the card reports its errors (Device Control)")] = True
    aer_masked: Annotated[bool, Field(description="the card masks the errors of its link")] = False
    aer_side: Annotated[Literal["gpu", "port"], Field(description="which link partner counts them")] = "gpu"
    aer_uncorrected: Annotated[Count, Field(description="uncorrected PCIe errors, once")] = 0
    aer_counters: Annotated[bool, Field(description="the kernel shows AER counters of this link")] = True
    replays_per_min: Rate = 0.0
    xid: Annotated[int, Field(ge=0, le=200, description="Xid that the driver logs, once; 0 for none")] = 0
    recovery: Annotated[int, Field(ge=0, le=7, description="what the driver wants done, by NVML's number")] = 0
    ecc_uncorrected: Annotated[Count, Field(description="uncorrected memory errors, once")] = 0
    rows_remapped: Annotated[Count, Field(description="rows remapped for uncorrectable errors")] = 0
    remap_pending: bool = False
    remap_failed: Annotated[bool, Field(description="a row was to be remapped, and no spare one is left")] = False
    temperature_sensor: Literal["ok", "unsupported", "zero"] = "ok"
    throttle_counters: Annotated[bool, Field(description="the driver reports throttle time")] = True


class Cpu(Part):
    """Processor and memory."""

    model: Text = "AMD EPYC 7542 32-Core Processor"
    cores: Annotated[int, Field(ge=1, le=1024)] = 32
    threads: Annotated[int, Field(ge=1, le=4096)] = 64
    offline: Annotated[Count, Field(description="CPUs present but offline")] = 0
    power_w: Watts = 225.0
    dimms: Annotated[int, Field(ge=0, le=64)] = 8
    dimm_gib: Annotated[int, Field(ge=1, le=1024)] = 64
    dimm_mts: Annotated[int, Field(ge=100, le=20_000)] = 2666
    dimm_type: Text = "DDR4"
    odd_dimms: Annotated[Count, Field(description="modules of another part number than the rest")] = 0
    ecc: Annotated[bool, Field(description="the memory controller corrects errors; the modules always could")] = True
    edac: Annotated[bool, Field(description="the kernel watches the memory controller")] = True
    memory_corrected: Annotated[Count, Field(description="memory errors under load that ECC corrects")] = 0
    memory_uncorrected: Annotated[Count, Field(description="memory errors under load that it cannot correct")] = 0
    visible_share: Annotated[
        Share, Field(description="[E] share of the installed memory that the kernel counts as its own")
    ] = 0.983
    governor: Literal["performance", "powersave", "schedutil", "ondemand"] = "performance"
    saving_cpus: Annotated[Count, Field(description="CPUs whose governor is powersave, whatever that of the rest")] = 0
    boost: bool = True
    numa_nodes: Annotated[int, Field(ge=1, le=64)] = 1
    wrong_results: Annotated[Count, Field(description="verification failures of stress-ng")] = 0
    idle_cpus: Annotated[Count, Field(description="CPUs that the burn does not reach")] = 0
    burn_ends_after: Annotated[Share, Field(description="share of the asked time that stress-ng runs")] = 1.0
    burn_missing: Annotated[Count, Field(description="workers of the CPU burn that never start")] = 0
    burn_killed: Annotated[Count, Field(description="workers of the CPU burn that somebody kills")] = 0
    shared: Annotated[Share, Field(description="share of every CPU that somebody else's processes take")] = 0.0
    quota_cpus: Annotated[Count, Field(description="CPUs whose time the control group gives; 0 for all")] = 0
    rise_c: Annotated[Celsius, Field(description="rise of its temperature over rest at full load [E]")] = 32.0
    thermometer: Annotated[Literal["ok", "none", "lost"], Field(description="lost: silent under load")] = "ok"
    all_core_mhz: Annotated[Rate, Field(description="clock of every CPU while all work [E]")] = 3200.0
    memory_held: Annotated[Share, Field(description="share of the memory that somebody else holds")] = 0.02
    memory_wrong: Annotated[Count, Field(description="workers of the memory burn that find flipped bits")] = 0
    memory_reached: Annotated[Share, Field(description="share of its memory that the burn touches")] = 1.0
    memory_idle: Annotated[Count, Field(description="workers of the memory burn that hold no memory")] = 0
    oom_kills: Annotated[Count, Field(description="processes that the OOM killer ends during the memory burn")] = 0
    bandwidth_share: Annotated[Share, Field(description="share of its channels' rate that stress-ng shows [E]")] = 0.78


class Host(Part):
    """Board, operating system, driver, delivered software, services, evidence channels."""

    room_c: Annotated[Celsius, Field(description="air that the cards breathe, machine idle")] = 28.0
    board_vendor: Text = "ASRockRack"
    board_name: Text = "ROMED8-2T/BCM"
    board_serial: Text = "205012345600042"
    product: Text = "ROMED8-2T/BCM"
    bios: Text = "P3.80"
    bios_date: Text = "11/23/2023"
    disk_model: Annotated[Text, Field(description="disk of the operating system")] = "Simulated SATA 512GB"
    disk_gb: Rate = 512.1
    os_id: Text = "ubuntu"
    os_version: Text = "24.04"
    kernel: Text = "6.8.0-107-generic"
    cmdline: Text = "BOOT_IMAGE=/vmlinuz root=/dev/mapper/vg0-root ro quiet"
    driver: Text = "590.48.01"
    driver_loaded: bool = True
    driver_on_disk: Annotated[Text, Field(description="version of the module on the disk; '' as in memory")] = ""
    new_kernel: Annotated[Text, Field(description="a newer kernel that is installed and does not run; '' for none")] = (
        ""
    )
    new_kernel_driver: Annotated[bool, Field(description="the driver was built for it")] = True
    secure_boot: Annotated[Literal["legacy", "off", "on"], Field(description="legacy: started without EFI")] = "on"
    driver_signed: bool = True
    clocksource: Literal["tsc", "hpet", "acpi_pm"] = "tsc"
    flavour: Literal["open", "proprietary"] = "open"
    cuda_driver: Annotated[str, Field(pattern=r"^\d{1,2}\.\d{1,2}$")] = "13.1"
    cuda_toolkit: Text = "13.2"
    cudnn: Text = "9.20.0"
    torch: Text = "2.10.0+cu128"
    transformers: Text = "4.57.6"
    boot: Annotated[Count, Field(description="number of this boot: another one is a machine started anew")] = 0
    log_readable: Annotated[
        bool, Field(description="the kernel log can be read; if not, journalctl prints nothing")
    ] = True
    log_stopped: Annotated[bool, Field(description="nobody takes the kernel's messages down any more")] = False
    stalls_s: Annotated[Seconds, Field(description="time for which the poll of the counters is kept waiting")] = 0.0
    kernel_says: Annotated[Text, Field(description="a line that the kernel writes, once, under load; '' for none")] = ""
    taint: Annotated[int, Field(ge=0, le=2**19, description="bits of the kernel's taint besides those of modules")] = 0
    kernel_said: Annotated[Text, Field(description="a line that the kernel wrote before the run; '' for none")] = ""
    lockup_detector: Annotated[bool, Field(description="the kernel looks for lockups")] = True
    device_errors: Annotated[Count, Field(description="uncorrected PCIe errors of the first drive under load")] = 0
    device_corrected: Annotated[Count, Field(description="corrected PCIe errors of the first drive under load")] = 0
    keeps_crashes: Annotated[bool, Field(description="the firmware has a place to keep a crash")] = True
    crashes: Annotated[Count, Field(description="records of earlier crashes that the firmware keeps")] = 0
    aer_armed: Annotated[bool, Field(description="the kernel controls AER")] = True
    devices_report: Annotated[bool, Field(description="drives and networks report their PCIe errors")] = True
    psu: Annotated[Text, Field(description="what a person sees who looks")] = ""
    chassis: Annotated[Text, Field(description="what a person sees who looks")] = ""
    psu_rating_w: Annotated[Count, Field(description="W on the labels together, as seen [E]; 0: nobody looked")] = 3200
    cabling: Annotated[Text, Field(description="what a person sees who looks")] = ""
    prometheus: Annotated[Literal["up", "down", "stale"], Field(description="stale: answers, but scrapes nothing")] = (
        "up"
    )
    exporter_gpus: Annotated[
        int, Field(ge=-1, le=64, description="GPUs that the DCGM exporter covers; -1 for all")
    ] = -1
    node_exporter: Annotated[bool, Field(description="the exporter of the machine itself can be scraped")] = True
    exporter: bool = True
    exporter_lacks: Annotated[Text, Field(description="series that the DCGM exporter does not show")] = ""
    exporter_frozen: Annotated[bool, Field(description="the DCGM exporter shows one temperature for ever")] = False
    alert_rules: Annotated[bool, Field(description="Prometheus has alert rules for the GPUs")] = True
    grafana: Literal["up", "down", "database"] = "up"
    systemd: Annotated[bool, Field(description="systemd is what booted the machine")] = True
    persistence_unit: Annotated[
        Literal["mode", "no mode", "masked", "absent"],
        Field(description="nvidia-persistenced's unit; `no mode` as Ubuntu ships it, with --no-persistence-mode"),
    ] = "mode"
    driver_pin: Annotated[
        Literal["hold", "blacklist", "off", "none"],
        Field(description="what keeps apt from upgrading the driver; off: unattended upgrades are"),
    ] = "hold"
    clock_synced: bool = True
    bmc: Annotated[bool, Field(description="the board has a controller that answers")] = True
    bmc_events: Annotated[Count, Field(description="entries that its event log gained")] = 0
    bmc_log_full: Annotated[bool, Field(description="its event log takes no more entries")] = False
    bmc_fan: Annotated[
        Literal["turns", "slow", "silent"], Field(description="its first fan; silent: its sensor reads nothing")
    ] = "turns"
    bmc_supply_failed: Annotated[bool, Field(description="its second power supply says that it failed")] = False
    failed_units: Annotated[Count, Field(description="units of systemd that failed")] = 0
    lvm_readable: Annotated[bool, Field(description="vgs may look; if not, it lists nothing")] = True
    other_drives: Annotated[Count, Field(description="NVMe drives besides those of the profile")] = 0
    lvm_free: Annotated[Share, Field(description="share of the volume group that is not allocated")] = 0.05


class Drive(Part):
    """One NVMe drive."""

    present: bool = True
    model: Text = "Simulated NVMe 2TB"
    serial: Annotated[Text, Field(description="'' for one that follows from the seed")] = ""
    firmware: Text = "SIM1.0"
    size_gb: Rate = 2000.4
    pcie_gen: Annotated[Gen, Field(description="generation of its link")] = 4
    pcie_width: Lanes = 4
    read_mbs: Rate = 4589.0
    write_mbs: Rate = 4213.0
    read_iops: Rate = 568_000.0
    write_iops: Rate = 555_000.0
    cache_gib: Annotated[Rate, Field(description="writes that the fast cache takes before the rate falls")] = 600.0
    after_cache: Annotated[Share, Field(description="share of the write rate once the cache is full")] = 0.35
    page_cached: Annotated[bool, Field(description="reads are answered from memory, direct I/O is ignored")] = False
    error: Annotated[int, Field(ge=0, le=133, description="errno that fio reports")] = 0
    interrupted: Annotated[bool, Field(description="fio ends half-way, with status 0")] = False
    free_gib: Rate = 1700.0
    read_only: Annotated[bool, Field(description="its file system is mounted read-only")] = False
    foreign_busy: Annotated[Share, Field(description="share of the time in which somebody else reads from it")] = 0.0
    corrupt: Annotated[bool, Field(description="data read back are not those written")] = False
    file_errors: Annotated[Count, Field(description="errors of its file system under load")] = 0
    tail: Annotated[Factor, Field(description="99th percentile of the latency over the mean [E]")] = 1.8
    short_ios: Annotated[Count, Field(description="requests that came back short, in each job")] = 0
    buffered_gbs: Annotated[Rate, Field(description="cold buffered read by one process [E]")] = 2.9
    resident: Annotated[Share, Field(description="share of a file that stays in memory when it is evicted")] = 0.0
    idle_c: Annotated[Celsius, Field(description="temperature at rest [E]")] = 38.0
    load_c: Annotated[Celsius, Field(description="temperature after minutes of load [E]")] = 61.0
    critical_c: Annotated[Celsius, Field(description="temperature that the drive calls critical; 0 for none")] = 85.0
    sensor: Annotated[bool, Field(description="the kernel shows its temperature")] = True
    log_readable: Annotated[bool, Field(description="its health log can be read, as by root")] = True
    critical_warning: Annotated[int, Field(ge=0, le=255, description="bit mask")] = 0
    media_errors: Count = 0
    spare: Annotated[int, Field(ge=0, le=100, description="% of the spare blocks left")] = 100
    used: Annotated[int, Field(ge=0, le=255, description="% of its life")] = 0
    hours: Annotated[Count, Field(description="power-on hours")] = 12
    power_losses: Annotated[Count, Field(description="unsafe shutdowns under load, once")] = 0
    throttled: Annotated[Count, Field(description="thermal transitions under load, once")] = 0
    noise: Annotated[Share, Field(description="standard deviation of a job's rate")] = 0.01


class Nic(Part):
    """One network interface."""

    interface: Text = "eno1"
    flaps: Annotated[Count, Field(description="carrier losses, once")] = 0
    flap_at_step: Annotated[Count, Field(description="load step of the GPUs that costs the carrier; 0 for none")] = 0
    readable: bool = True
    present: Annotated[bool, Field(description="it is there; it may go during the run")] = True
    speed_mbps: Annotated[Count, Field(gt=0)] = 10_000
    duplex: Literal["full", "half"] = "full"
    mtu: Annotated[Count, Field(gt=0)] = 1500
    driver: Text = "ixgbe"
    counters: Annotated[bool, Field(description="it has statistics")] = True
    traffic: Annotated[bool, Field(description="frames arrive")] = True
    crc_errors_per_min: Rate = 0.0
    symbol_errors_per_min: Annotated[Rate, Field(description="errors that only ethtool shows")] = 0.0


class Vllm(Part):
    """The delivered vLLM."""

    version: Text = "0.19.0"
    kernel: Annotated[Text, Field(description="family of the quantised layers' kernel")] = "marlin"
    roofline: Annotated[Share, Field(gt=0, description="single-stream decode over the memory-bandwidth bound")] = 0.43
    batch_gain: Annotated[Rate, Field(gt=0, description="output of 32 requests over single stream")] = 13.0
    load_s: Seconds = 95.0
    noise: Share = 0.01
    starts: bool = True
    degenerate: Annotated[bool, Field(description="repeats one token")] = False
    unsteady: Annotated[bool, Field(description="greedy answers to one prompt differ")] = False
    wrong_rank: Annotated[int, Field(ge=-1, le=63, description="rank that runs the slow kernel; -1 for none")] = -1
    fallback: Annotated[Share, Field(description="share of the layers that fell back to the slow kernel")] = 0.0
    eager: Annotated[bool, Field(description="runs without CUDA graphs")] = False
    prefix_cache: Annotated[bool, Field(description="answers repeated prompts from its cache")] = False
    log_only: Annotated[bool, Field(description="the workers do not tell their kernels, only the log does")] = False
    first_token_s: Annotated[Seconds, Field(description="time to the first token of a short prompt [E]")] = 0.15
    eos_after: Annotated[Count, Field(description="tokens after which every answer ends; 0 for as asked")] = 0
    failing: Annotated[Share, Field(description="share of the requests that fail")] = 0.0
    crashes_after: Annotated[Count, Field(description="requests answered before it dies; 0 for never")] = 0
    hangs: Annotated[bool, Field(description="loads, and never answers")] = False


class LlamaCpp(Part):
    """The delivered llama.cpp."""

    version: Text = "0.3.20"
    roofline: Annotated[Share, Field(gt=0, description="decode over the bound of one GPU at a time")] = 0.84
    prompt_toks: Annotated[Rate, Field(gt=0, description="prompt processing, tokens per second")] = 1568.0
    load_s: Seconds = 10.8
    offloaded: Annotated[Share, Field(description="share of the weights read per token that lies on GPUs")] = 1.0
    gpu_build: Annotated[bool, Field(description="built with CUDA; a CPU build ignores n_gpu_layers")] = True
    extra_splits: Annotated[Count, Field(description="graph splits by operations that fall back to the CPU")] = 0
    noise: Share = 0.01
    starts: bool = True
    degenerate: Annotated[bool, Field(description="repeats one token")] = False
    unsteady: Annotated[bool, Field(description="greedy answers to one prompt differ")] = False
    eos_after: Annotated[Count, Field(description="tokens after which every answer ends; 0 for as asked")] = 0
    failing: Annotated[Share, Field(description="share of the requests that fail")] = 0.0
    crashes_after: Annotated[Count, Field(description="requests answered before it dies; 0 for never")] = 0


PARTS: dict[str, type[Part]] = {
    "gpu": Gpu, "cpu": Cpu, "host": Host, "drive": Drive, "nic": Nic, "vllm": Vllm, "llamacpp": LlamaCpp,
}  # fmt: skip
"""Name of a part -> its parameters."""
