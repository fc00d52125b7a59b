"""The physical model: heat, power, clocks, links, counters and the kernel log on a virtual clock.

Owns the state that moves with time and the loads that move it. Knows no metric and no limit; how a
reading of it looks is nvml.py's, files.py's and commands.py's business.
"""

import contextlib
import datetime as dt
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.profile import PCIE_GBS_PER_LANE
from pytest_gpuaccept.sim.parts import Cpu, Drive, Gpu, Host, LlamaCpp, Nic, Part, Vllm
from pytest_gpuaccept.world import Record

TICK = 0.1
"""Seconds of one step of the model."""
START = dt.datetime(2026, 1, 1, 8, 0, tzinfo=dt.UTC)
"""Wall-clock time at which a machine's virtual time begins, unless it is told."""
UPTIME_S = 600.0
"""Seconds since boot when a run begins."""
QUIET = "random: crng init done"
"""What the kernel says where a fault has it say something else before the run."""

POWER_LAG_S = 1.0
WARM_LAG_S = 12.0
"""Lag with which a sustained load reaches its lower rate."""
HEAT_SHARE = 0.5
"""[E] Share of the sustained loss that is charged to the die's temperature, the rest to time."""
THROTTLE_EXPONENT = 0.6
"""[E] Rate over power while the governor takes power away."""
LIMIT_EXPONENT = 0.7
"""[E] Rate over power limit; an RTX PRO 6000 shows 0.5 to 0.9 between 300 and 600 W."""
GOVERNOR_BELOW_C = 2.0
GOVERNOR_PER_C = 0.3
"""[E] The governor takes this share of the power per degree, from 2 C below the target: it settles under it."""
LEAST_POWER = 0.2
"""[E] Share of the power that the governor leaves."""
PREHEAT_C_PER_W = 2.5 / 225
"""[E] Air behind a CPU: P / (1.2 kg/m3 x 1005 J/kgK x 0.075 m3/s) is 2.5 C at 225 W."""
CPU_REST_C, CPU_TAU_S = 10.0, 8.0
"""[E] Rise of a CPU at rest over the room, and the lag of its temperature."""
COPY_POWER = 0.3
"""[E] Share of the dynamic power that a copy draws."""
LINK_SLEEP_S = 2.0
"""[E] Seconds without load after which a link goes back to Gen1."""
DROP_AT_S = 2.0
"""Seconds into a load at which a link that drops does so."""
IDLE_CLOCK_MHZ = 210
FULL_LANES = 16
FALLEN_XID, HALTED_XID = 79, 62
"""NVIDIA's Xid catalogue: GPU has fallen off the bus; internal micro-controller halt."""


class GpuState:
    """One GPU over time."""

    __slots__ = (
        "address", "brake_ns", "busy_since", "capped_ns", "corrected", "cpu_load", "energy_mj", "idle_since",
        "index", "load", "loads", "p", "port", "power", "replays", "rng", "shown", "steps", "temperature", "thermal_ns",
        "throttle", "uncorrected", "warm",
    )  # fmt: skip

    def __init__(self, index: int, part: Gpu, place: tuple[str, str], room_c: float, seed: str) -> None:
        """Start idle, at room temperature; `place` is the PCI address of the GPU and of the port above it."""
        self.index, self.p = index, part
        self.address, self.port = place
        self.rng = random.Random(f"{seed}/gpu{index}")  # noqa: S311 - noise of a model
        self.temperature, self.power, self.throttle, self.warm = room_c, part.idle_w, 1.0, 0.0
        self.energy_mj, self.thermal_ns, self.brake_ns, self.capped_ns = 0.0, 0.0, 0.0, 0.0
        self.corrected, self.uncorrected, self.replays = 0.0, 0, 0.0
        self.load, self.busy_since, self.idle_since, self.cpu_load = 0.0, -1e9, -1e9, 0.0
        self.loads: list[float] = []
        self.shown: set[str] = set()
        self.steps = 0

    def step(self, seconds: float, ambient_c: float) -> None:
        """Let power and heat move for `seconds` in air of `ambient_c`."""
        p, load = self.p, self.load
        dynamic = p.limit_w * (1.0 + p.over_limit) - p.idle_w
        target = p.idle_w + (load * dynamic * self.throttle * (1.0 - p.power_brake) if load else 0.0)
        self.power += (target - self.power) * min(1.0, seconds / POWER_LAG_S)
        settled = ambient_c + p.resistance_c_per_w * p.airflow * (self.power - p.idle_w)
        self.temperature += (settled - self.temperature) * min(1.0, seconds / p.tau_s)
        self.energy_mj += self.power * seconds * 1000.0
        self.warm += ((1.0 if load >= 1.0 else 0.0) - self.warm) * min(1.0, seconds / WARM_LAG_S)
        over = self.temperature - p.target_c + GOVERNOR_BELOW_C
        self.throttle = max(LEAST_POWER, 1.0 - GOVERNOR_PER_C * over) if load and over > 0.0 else 1.0
        if self.throttle < 1.0:
            self.thermal_ns += seconds * 1e9
        if load and p.power_brake:
            self.brake_ns += seconds * 1e9
        self.capped_ns += seconds * 1e9 * self.at_limit

    @property
    def at_limit(self) -> bool:
        """Say whether the power limit holds the clock down: full load, within 2 % of the limit."""
        return self.load >= 1.0 and self.power >= 0.98 * self.p.limit_w

    @property
    def clock_share(self) -> float:
        """Share of the cold full-load clock that power, heat and faults leave."""
        p = self.p
        loss = 1.0 - p.sustained
        heat = HEAT_SHARE * loss * (self.temperature - 28.0) / 39.0
        share = 1.0 - (1.0 - HEAT_SHARE) * loss * self.warm - heat
        return float(
            max(0.0, share)
            * (p.limit_w / p.rated_limit_w) ** LIMIT_EXPONENT
            * (self.throttle * (1.0 - p.power_brake)) ** THROTTLE_EXPONENT
            * (1.0 - p.clock_loss)
        )

    @property
    def cold_clock_mhz(self) -> float:
        """SM clock at which the card reaches its cold FP16 rate."""
        p = self.p
        return p.fp16_tflops * 1e6 / (p.sm_count * p.flop_per_clk_sm_fp16 * p.tensor_efficiency)

    @property
    def clock_mhz(self) -> float:
        """SM clock now."""
        return self.cold_clock_mhz * self.clock_share if self.load else IDLE_CLOCK_MHZ

    def rate(self, kind: str, at: float) -> float:
        """Return the TFLOPS of a batch of matrix products, `at` seconds into a load."""
        p = self.p
        rates = {"fp16": p.fp16_tflops, "burn": p.fp16_tflops, "bf16": p.bf16_tflops, "fp32": p.fp32_tflops}
        rates |= {"tf32": p.tf32_tflops, "fp8": p.fp8_tflops}
        cold = rates[kind] * (2.0 if p.accumulate == "fp16" and kind in ("fp16", "burn") else 1.0)
        pulse = 1.0 if p.pulse >= 1.0 or at % 10.0 < 10.0 * p.pulse else 0.5
        share = (1.0 - p.slowdown) * (1.0 - p.cpu_interference * self.cpu_load) * pulse
        return cold * self.clock_share * share * (1.0 + self.rng.gauss(0.0, p.rate_noise))

    def meter_w(self) -> float:
        """Return one sample of the power meter."""
        p = self.p
        if p.overshoot and self.load >= 1.0 and self.rng.random() < 0.02:  # noqa: PLR2004 - now and then
            return p.limit_w * (1.0 + p.overshoot)
        return self.power * (1.0 + self.rng.gauss(0.0, p.power_noise))

    def link_gen(self, now: float) -> int:
        """Return the link's generation at this moment."""
        p = self.p
        full = min(p.pcie_gen, p.card_gen, p.slot_gen)
        if self.load:
            into = now - self.busy_since
            dropped = DROP_AT_S <= into < DROP_AT_S + p.link_drops_s
            dropped |= p.step_event == "link" and self.steps == p.event_at_step
            asleep = self.busy_since - self.idle_since >= LINK_SLEEP_S and into < p.link_rise_s
            return 1 if asleep or dropped else full
        return full if now - self.idle_since < LINK_SLEEP_S else 1

    @property
    def link_share(self) -> float:
        """Share of the card's own x16 link that generation and width leave."""
        p = self.p
        gen = min(p.pcie_gen, p.card_gen, p.slot_gen)
        return PCIE_GBS_PER_LANE[gen] * p.pcie_width / (PCIE_GBS_PER_LANE[p.card_gen] * FULL_LANES)

    def wrong_now(self) -> bool:
        """Say whether a product made at this temperature may be wrong."""
        return self.p.always_wrong or (self.p.flips_per_s > 0 and self.temperature > self.p.flip_above_c)


@dataclass(slots=True)
class When:
    """When a fault is there: from a time or the first run of a load; while hot; or coming and going."""

    from_s: float = 0.0
    during: str = ""
    above_c: float | None = None
    on_s: float = 0.0
    off_s: float = 0.0


@dataclass(slots=True)
class Change:
    """A parameter of a part that a fault sets while it is there, and what it was."""

    part: Part
    parameter: str
    value: object
    when: When = field(default_factory=When)
    gpu: GpuState | None = None
    fault: str = ""
    began: float | None = None
    healthy: object = None
    felt: bool = False


@dataclass(slots=True)
class LogLine:
    """One record of the kernel log; `facility` tells what a program wrote from the kernel's own."""

    at: float
    priority: int
    message: str
    device: str = ""
    facility: int = 0


USER = 1
"""Facility of what programs write into the kernel log (syslog.h: LOG_USER)."""


class ScriptClock:
    """The clock of a load script: sleeping makes the script wait while the machine goes on."""

    def __init__(self, machine: "Machine") -> None:
        """Take the machine whose time it shows."""
        self._machine = machine
        self.resume_at = machine.now

    def now(self) -> dt.datetime:
        """Return the wall-clock time, UTC."""
        return self._machine.started + dt.timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Return the seconds at which the script stands: at most a tick behind the machine."""
        return self.resume_at

    def sleep(self, seconds: float) -> None:
        """Make the script wait."""
        self.resume_at = self.monotonic() + seconds


Body = Callable[[ScriptClock], Generator[Record, Record | None, None]]


class Script:
    """A load script in virtual time: the generator that the child runs, resumed when its time has come."""

    def __init__(self, name: str, body: Body, machine: "Machine") -> None:
        """Prepare a script; `Machine.scripts` starts it."""
        self.name, self.records, self.death = name, list[Record](), ""
        self.clock = ScriptClock(machine)
        self.answer: Record | None = None
        self._generator = body(self.clock)
        self._awaits = self.ended = False

    def resume(self, now: float) -> None:
        """Let it work until it waits for a time after `now` or for an answer, or ends."""
        while not self.ended and self.clock.resume_at <= now + 1e-9:
            if self._awaits and self.answer is None:
                self.clock.resume_at = now
                return
            answer, self.answer = self.answer, None
            try:
                self.records.append(self._generator.send(answer))
                self._awaits = bool(self.records[-1].get("awaits"))
            except StopIteration:
                self.ended = True
            except Unmeasurable as error:
                self.ended, self.death = True, str(error)

    def close(self) -> None:
        """End it."""
        self._generator.close()
        self.ended = True


class Machine:
    """A machine with its parts, its time and what runs on it."""

    def __init__(  # noqa: PLR0913 - the parts of a machine, all by name
        self,
        *,
        seed: str,
        noise: int = 0,
        cpu: Cpu,
        host: Host,
        gpus: list[Gpu],
        drives: dict[str, Drive],
        nics: dict[str, Nic],
        vllm: Vllm,
        llamacpp: LlamaCpp,
    ) -> None:
        """Boot: everything idle, the log filled by the boot; `noise` is the run on the machine `seed`."""
        self.noise = f"{seed}/{noise}" if noise else seed
        self.seed, self.now, self.cpu_load = seed, 0.0, 0.0
        self.started = START
        self.cpu, self.host, self.drives, self.nics, self.vllm, self.llamacpp = cpu, host, drives, nics, vllm, llamacpp
        places = buses(len(gpus))
        self.gpus = [
            GpuState(i, gpu, place, host.room_c, self.noise)
            for i, (gpu, place) in enumerate(zip(gpus, places, strict=True))
        ]
        self.running: list[str] = []
        self.changes: list[Change] = []
        self.scripts: list[Script] = []
        self.services: list[Script] = []
        self.written: dict[str, str] = {}
        self.said = set[str]()
        self.was_loaded = False
        self.preheat_c = 0.0
        self.cpu_busy_s = 0.0
        self.cpu_c = host.room_c + CPU_REST_C
        self.held: list[int] = []
        self.killed = 0
        self.worked_s: dict[int, float] = {}
        self.moved = {name: {"read": 0, "write": 0} for name in drives}
        self.drive_busy_s = dict.fromkeys(drives, 0.0)
        self.flapped = dict.fromkeys(nics, 0)
        self.mounts: dict[str, str] = {}
        self.engines: frozenset[str] = frozenset({"vllm", "llamacpp"})
        self.bandwidth_gbs = 0.0
        self.log = [
            LogLine(-UPTIME_S, 5, f"Linux version {host.kernel} (buildd@host) (gcc 13.3.0)"),
            LogLine(-UPTIME_S, 6, f"Command line: {host.cmdline}"),
            LogLine(
                -UPTIME_S + 1, 6, "acpi PNP0A08:00: _OSC: OS now controls [PCIeHotplug PME AER PCIeCapability LTR]"
            ),
            LogLine(-UPTIME_S / 2, 6, QUIET),
        ]

    def random(self, what: str) -> random.Random:
        """Return the noise of one thing: the same for the same seed and run, whatever else is asked."""
        return random.Random(f"{self.noise}/{what}")  # noqa: S311 - noise of a model

    def part(self, name: str) -> Part | None:
        """Return a part by its scenario name: `gpu2`, `cpu`, `host`, `nvme0`, `nic0`, `vllm`, `llamacpp`."""
        engines: dict[str, Part] = {"vllm": self.vllm, "llamacpp": self.llamacpp}
        named: dict[str, Part] = {"cpu": self.cpu, "host": self.host}
        named |= {engine: part for engine, part in engines.items() if engine in self.engines}
        named |= {f"gpu{g.index}": g.p for g in self.gpus}
        return (named | self.drives | self.nics).get(name)

    def say(self, message: str, *, priority: int = 6, device: str = "", facility: int = 0) -> None:
        """Write a line into the kernel log; nobody does once its log has stopped."""
        if not self.host.log_stopped:
            self.log.append(LogLine(self.now, priority, message, device, facility))

    # time ------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass: the model steps, faults come and go, scripts do their work."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            step = min(TICK, end - self.now)
            self._step(step)
            self.now += step
            if self.changes:
                self._apply()
            for script in (*self.services, *self.scripts):
                script.resume(self.now)

    def _step(self, seconds: float) -> None:
        cpu_c = self.cpu_load * self.cpu.power_w * PREHEAT_C_PER_W
        self.preheat_c += (cpu_c - self.preheat_c) * min(1.0, seconds / 10.0)
        self.cpu_busy_s += self.cpu_load * seconds
        warm = self.host.room_c + CPU_REST_C + self.cpu_load * self.cpu.rise_c
        self.cpu_c += (warm - self.cpu_c) * min(1.0, seconds / CPU_TAU_S)
        if self.cpu_load:
            self._work(seconds)
        ambient = self.host.room_c + self.preheat_c
        for gpu in self.gpus:
            gpu.cpu_load = self.cpu_load
            gpu.step(seconds, ambient)
            if gpu.load:
                self._events(gpu, seconds)
            if gpu.p.lost and gpu.p.present:
                self._fall(gpu)
        if self.running:
            self.was_loaded = True
            self._flap()
            self._complain()

    def _work(self, seconds: float) -> None:
        """Count the time that each of the reached CPUs worked, by how many were not reached then."""
        idle, online = self.cpu.idle_cpus, max(0, self.cpu.threads - self.cpu.offline)
        if idle < online:
            each = min(1.0, self.cpu_load * online / (online - idle)) * seconds
            self.worked_s[idle] = self.worked_s.get(idle, 0.0) + each

    def _events(self, gpu: GpuState, seconds: float) -> None:
        """Count and log what goes wrong on a GPU's link and in its driver under load."""
        p, before = gpu.p, int(gpu.corrected)
        gpu.corrected += p.aer_corrected_per_min * seconds / 60.0
        gpu.replays += p.replays_per_min * seconds / 60.0
        for _ in range(before, int(gpu.corrected)):
            self._log_aer(gpu, "Correctable", p.aer_kind)
        if p.aer_uncorrected > gpu.uncorrected:
            gpu.uncorrected = p.aer_uncorrected
            self._log_aer(gpu, "Uncorrectable (Non-Fatal)", "TLP")
        if p.xid and "xid" not in gpu.shown:
            gpu.shown.add("xid")
            self._log_xid(gpu, p.xid)

    def _fall(self, gpu: GpuState) -> None:
        """Log, once, that a card has fallen off the bus."""
        if "lost" not in gpu.shown:
            gpu.shown.add("lost")
            self._log_xid(gpu, FALLEN_XID)
            self.say(f"NVRM: GPU {gpu.address}: GPU has fallen off the bus.", priority=3, device=gpu.address)

    def _log_xid(self, gpu: GpuState, xid: int) -> None:
        text = f"NVRM: Xid (PCI:{gpu.address[:-2]}): {xid}, pid='<unknown>', name=<unknown>"
        self.say(text, priority=3, device=gpu.address)

    def _log_aer(self, gpu: GpuState, severity: str, kind: str) -> None:
        if not self.host.aer_armed:
            return
        port, own = gpu.port, gpu.address
        seen = own if gpu.p.aer_side == "gpu" else port
        self.say(f"pcieport {port}: AER: {severity} error message received from {seen}", priority=4, device=port)
        self.say(f"nvidia {seen}: PCIe Bus Error: severity={severity}, type=Physical Layer, (Receiver ID)",
                 priority=4, device=seen)  # fmt: skip
        self.say(f"nvidia {seen}:    [ 0] {kind}                  (First)", priority=4, device=seen)

    def _complain(self) -> None:
        """Let the kernel say, once, what a fault has it say."""
        if self.host.kernel_says and self.host.kernel_says not in self.said:
            self.said.add(self.host.kernel_says)
            self.say(self.host.kernel_says, priority=3)

    def _flap(self) -> None:
        steps = max((gpu.steps for gpu in self.gpus), default=0)
        for name, nic in self.nics.items():
            lost = nic.flaps + (0 < nic.flap_at_step <= steps)
            for _ in range(self.flapped[name], lost):
                self.say(f"ixgbe 0000:42:00.0 {nic.interface}: NIC Link is Down")
                self.say(f"ixgbe 0000:42:00.0 {nic.interface}: NIC Link is Up 10 Gbps, Flow Control: None")
            self.flapped[name] = max(self.flapped[name], lost)

    # faults ----------------------------------------------------------------------------------

    def plan(self, change: Change) -> None:
        """Take a fault's change; it is applied as soon as its time has come."""
        same = (c.healthy for c in self.changes if c.part is change.part and c.parameter == change.parameter)
        change.healthy = next(same, getattr(change.part, change.parameter))
        self.changes.append(change)
        self._apply()

    def _apply(self) -> None:
        """Set each parameter to what the last planned of the faults that are there makes it, else back."""
        wanted: dict[tuple[int, str], tuple[Change, object]] = {}
        for change in self.changes:
            place, there = (id(change.part), change.parameter), self._is_there(change)
            change.felt |= there and change.value != change.healthy
            if there or place not in wanted:
                wanted[place] = change, change.value if there else change.healthy
        for change, value in wanted.values():
            if getattr(change.part, change.parameter) != value:
                setattr(change.part, change.parameter, value)

    def unfelt(self) -> list[str]:
        """Return the planned faults that changed nothing so far: never there, or what the machine is anyway."""
        faults = {change.fault: False for change in self.changes}
        for change in self.changes:
            faults[change.fault] |= change.felt
        return [fault for fault, felt in faults.items() if not felt]

    def _is_there(self, change: Change) -> bool:
        when = change.when
        if change.began is None and self.now >= when.from_s and self._runs(when.during):
            change.began = self.now
        if change.began is None:
            return False
        if when.above_c is not None and (change.gpu is None or change.gpu.temperature <= when.above_c):
            return False
        return not when.off_s or (self.now - change.began) % (when.on_s + when.off_s) < when.on_s

    def _runs(self, load: str) -> bool:
        """Say whether a load runs; `combined` is the burn of GPUs and CPUs together, '' is any time."""
        wanted = {"combined": {"burn", "stress-ng"}, "": set[str]()}.get(load, {load})
        return wanted <= set(self.running)

    # loads -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def runs(self, name: str, loads: Mapping[int, float] | None = None, cpu: float | None = None) -> Iterator[None]:
        """Have something run: its name, the share of full load by GPU, the share of the CPUs."""
        self.running.append(name)
        if cpu is not None:
            self.cpu_load = cpu
        if self.changes:
            self._apply()
        for index, share in (loads or {}).items():
            self._load(self.gpus[index], begin=share)
        try:
            yield
        finally:
            self.running.remove(name)
            for index, share in (loads or {}).items():
                self._load(self.gpus[index], end=share)
            if cpu is not None:
                self.cpu_load = 0.0

    def count_step(self, gpu: GpuState) -> None:
        """Begin a load step of a GPU: what its supply or its link does not take happens now."""
        gpu.steps += 1
        if gpu.steps == gpu.p.event_at_step and gpu.p.step_event == "lost":
            gpu.p.lost = True
        elif gpu.steps == gpu.p.event_at_step and gpu.p.step_event == "xid":
            self._log_xid(gpu, HALTED_XID)

    def _load(self, gpu: GpuState, *, begin: float | None = None, end: float | None = None) -> None:
        """Begin or end a load on a GPU; of several at once the heaviest counts."""
        if begin is not None:
            gpu.loads.append(begin)
        elif end is not None:
            gpu.loads.remove(end)
        reached = max(gpu.loads, default=0.0) if gpu.p.load_starts and gpu.p.present and not gpu.p.lost else 0.0
        if reached and not gpu.load:
            gpu.busy_since = self.now
        if gpu.load and not reached:
            gpu.idle_since = self.now
        gpu.load = reached


def buses(count: int) -> list[tuple[str, str]]:
    """Return the PCI addresses of `count` GPUs and of the root ports above them, in the order of the bus.

    Four are at 01, 41, 81 and c1, as on the commissioned machine; up to 64 share the bus evenly.
    """
    slots = max(4, 1 << (count - 1).bit_length()) if count else 4
    step = 256 // slots
    return [(f"0000:{i * step + 1:02x}:00.0", f"0000:{i * step:02x}:01.1") for i in range(count)]
