"""What the kernel of the simulated machine shows of its CPUs and memory under load.

Owns the thermometer, the clocks, what bounds a process, the memory that is available and the processes
that hold it. Everything is worked out of the model when it is read; keeps no state.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pytest_gpuaccept.sim.machine import Machine

Text = Callable[[], str]
HWMON, CPUS, PROC = "/sys/class/hwmon/hwmon3/", "/sys/devices/system/cpu/", "/proc/"
OURS, STRESS = 4242, 4300
"""Process numbers: the run itself, and stress-ng's first."""
IDLE_MHZ = 1500.0
CLOCK_SPREAD = 0.005
"""[E] Standard deviation of a CPU's clock under load."""
PERIOD_US = 100_000
SMALL_KIB = 2784
"""Resident memory of a process of stress-ng that only waits."""
GIB_KIB = 2**20


def total_kib(machine: Machine) -> int:
    """Return the memory that the kernel sees in KiB."""
    cpu = machine.cpu
    return int(cpu.dimms * cpu.dimm_gib * GIB_KIB * cpu.visible_share)


def meminfo(machine: Machine) -> str:
    """Return the memory in all, and what is left beside who holds some for long and the burn."""
    total = total_kib(machine)
    left = int(total * (1.0 - machine.cpu.memory_held)) - sum(machine.held) // 1024
    return f"MemTotal:       {total} kB\nMemFree:        {max(0, left)} kB\nMemAvailable:   {max(0, left)} kB"


def vmstat(machine: Machine) -> str:
    """Return the OOM killer's count among others."""
    return f"nr_free_pages 1\npgfault 4711\noom_kill {machine.killed}\nswap_ra 0"


def status(machine: Machine) -> str:
    """Return what the kernel says of the run's own process."""
    return f"{_process('pytest', OURS, 1, 200_000)}\nCpus_allowed_list:\t{_allowed(machine)}"


def _allowed(machine: Machine) -> str:
    last = max(1, machine.cpu.threads - machine.cpu.offline) - 1
    return f"0-{last}" if last else "0"


def quota(machine: Machine) -> str:
    """Return the CPU quota of the run's control group."""
    cpus = machine.cpu.quota_cpus
    return f"{f'{cpus * PERIOD_US}' if cpus else 'max'} {PERIOD_US}"


def workers(machine: Machine, real: str) -> dict[str, Text]:
    """Return the processes of stress-ng that hold memory: the first, one for each instance, and its child."""
    if not machine.held:
        return {}
    own = re.fullmatch(r"/proc/([0-9]{1,9})/status", real)
    pids = [int(own[1])] if own else range(STRESS, STRESS + 1 + 2 * len(machine.held))
    return {f"/proc/{pid}/status": partial(_worker, machine.held, pid) for pid in pids if _is_worker(machine, pid)}


def _is_worker(machine: Machine, pid: int) -> bool:
    return STRESS <= pid <= STRESS + 2 * len(machine.held)


def _worker(held: Sequence[int], pid: int) -> str:
    """Return the state of stress-ng's first process, or in turn of an instance and its child, which has the memory."""
    instance, child = divmod(pid - STRESS - 1, 2)
    if pid == STRESS:
        return _process("stress-ng", pid, OURS, SMALL_KIB)
    holds = held[instance] // 1024 if child else 0
    return _process("stress-ng-vm", pid, pid - 1 if child else STRESS, SMALL_KIB + holds)


def _process(name: str, pid: int, parent: int, rss_kib: int) -> str:
    return f"Name:\t{name}\nState:\tR (running)\nPid:\t{pid}\nPPid:\t{parent}\nVmRSS:\t{rss_kib:8} kB"


def thermometer(machine: Machine, _real: str) -> dict[str, Text]:
    """Return the files of the CPU's thermometer."""
    if machine.cpu.thermometer == "none":
        return {}
    driver, label = ("coretemp", "Package id 0") if "Intel" in machine.cpu.model else ("k10temp", "Tctl")
    files = {"name": driver, "temp1_label": label}
    if machine.cpu.thermometer == "ok" or not machine.cpu_load:
        files["temp1_input"] = f"{round(1000 * machine.cpu_c)}"
    return {f"{HWMON}{file}": partial(str, f"{line}\n") for file, line in files.items()}


def clocks(machine: Machine, real: str) -> dict[str, Text]:
    """Return the clock of the CPU whose file it is; of all for ''."""
    count = max(1, machine.cpu.threads - machine.cpu.offline)
    own = re.fullmatch(rf"{CPUS}cpu(\d{{1,5}})/cpufreq/scaling_cur_freq", real)
    wanted = [int(own[1])] if own else range(0 if real else count)
    return {f"{CPUS}cpu{n}/cpufreq/scaling_cur_freq": partial(_clock, machine, n) for n in wanted if n < count}


def _clock(machine: Machine, cpu: int) -> str:
    """Return a CPU's clock in kHz."""
    mhz = machine.cpu.all_core_mhz if machine.cpu_load else IDLE_MHZ
    noise = machine.random(f"clock/{cpu}/{machine.now:.1f}").gauss(0.0, CLOCK_SPREAD)
    return f"{round(1000 * mhz * (1.0 + noise))}\n"


SYSTEM: Mapping[str, Callable[[Machine], str | None]] = {
    "/proc/meminfo": meminfo,
    "/proc/self/cgroup": lambda _: "0::/user.slice",
    "/proc/self/status": status,
    "/proc/vmstat": vmstat,
    "/sys/fs/cgroup/user.slice/cpu.max": quota,
}
PROVIDERS = ((HWMON, thermometer), (CPUS, clocks), (PROC, workers))
