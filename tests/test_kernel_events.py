"""A kernel's message is a known event, a warning that nobody knows, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpuaccept.probes.kernel import events as ke
from pytest_gpuaccept.probes.kernel.log import Record
from tests.test_aer import CORRECTED_4X, CORRECTED_5X, CORRECTED_68

GPU = "0000:c1:00.0"
KNOWN = [
    ("mce: [Hardware Error]: Machine check events logged", ke.MACHINE_CHECK, ""),
    ("[Hardware Error]: Corrected error, no action required.", ke.MENDED, ""),
    ("RAS: Soft-offlining pfn: 0x1234", ke.MEMORY, ""),
    ("timeout error, dev nvme0n1, sector 17 op 0x0:(READ)", ke.STORAGE, "nvme0n1"),
    ("device offline error, dev sdb, sector 17", ke.STORAGE, "sdb"),
    ("recoverable transport error, dev nvme0n1, sector 17 op 0x0:(READ)", ke.STORAGE, "nvme0n1"),
    ("protection error, dev sdb, sector 17", ke.STORAGE, "sdb"),
    ("sd 0:0:0:0: rejecting I/O to offline device", ke.STORAGE, ""),
    ("nvme0n1: detected capacity change from 3907029168 to 0", ke.STORAGE, "nvme0"),
    ("Aborting journal on device nvme0n1p1-8.", ke.FILES, "nvme0n1p1-8."),
    ("JBD2: Detected IO errors while flushing file data on sda2-8", ke.FILES, ""),
    ("BTRFS warning (device nvme0n1): checksum/csum failed root 5 ino 257", ke.FILES, "nvme0n1"),
    ("XFS (nvme0n1): Metadata CRC error detected at xfs_agf_read_verify", ke.FILES, "nvme0n1"),
    ("nvidia 0000:c1:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000c address=0xf0]", ke.IOMMU, GPU),
    ("DMAR: [DMA Read NO_PASID] Request device [c1:00.0] fault addr 0xf0 [fault reason 0x06]", ke.IOMMU, ""),
    ("pcieport 0000:c0:01.1: pciehp: Slot(5): Link Down", ke.UNPLUGGED, "0000:c0:01.1"),
    ("NETDEV WATCHDOG: eno1 (ixgbe): transmit queue 3 timed out", ke.STALLED, "eno1"),
    ("NVRM: GPU0 _kgspRpcRecvPoll: Heartbeat timed out", ke.DRIVER, ""),
    ("{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 0", ke.MACHINE_CHECK, ""),
    ("Uhhuh. NMI received for unknown reason 2d on CPU 0.", ke.MACHINE_CHECK, ""),
    ("Kernel panic - not syncing: Fatal exception", ke.CRASH, ""),
    ("BUG: unable to handle page fault for address: ffffb1f4c0a3d008", ke.CRASH, ""),
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", ke.CRASH, ""),
    ("Oops: 0002 [#1] PREEMPT SMP NOPTI", ke.CRASH, ""),
    ("kernel BUG at mm/slub.c:435!", ke.CRASH, ""),
    ("general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] SMP", ke.CRASH, ""),
    ("watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [python3:4711]", ke.LOCKUP, ""),
    ("watchdog: Watchdog detected hard LOCKUP on cpu 12", ke.LOCKUP, ""),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", ke.LOCKUP, ""),
    ("INFO: task nvidia-smi:4711 blocked for more than 122 seconds.", ke.HUNG, ""),
    ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0", ke.MEMORY, "MC0"),
    ("Out of memory: Killed process 4711 (python3) total-vm:123kB", ke.OOM, ""),
    ("Memory cgroup out of memory: Killed process 4711 (stress-ng-vm)", ke.OOM, ""),
    ("nvme nvme0: I/O 512 QID 7 timeout, aborting", ke.STORAGE, "nvme0"),
    ("nvme nvme0: I/O tag 512 (1200) opcode 0x2 (I/O Cmd) QID 7 timeout, reset controller", ke.STORAGE, "nvme0"),
    ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10", ke.STORAGE, "nvme0"),
    ("nvme nvme0: Disabling device after reset failure: -19", ke.STORAGE, "nvme0"),
    ("blk_update_request: I/O error, dev nvme0n1, sector 2048 op 0x0:(READ)", ke.STORAGE, "nvme0n1"),
    ("I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0", ke.STORAGE, "sda"),
    ("Buffer I/O error on dev nvme0n1p2, logical block 0, async page read", ke.STORAGE, "nvme0n1p2"),
    ("critical medium error, dev nvme0n1, sector 17", ke.STORAGE, "nvme0n1"),
    ("ata1.00: exception Emask 0x0 SAct 0x0 SErr 0x0 action 0x6 frozen", ke.STORAGE, "ata1"),
    ("EXT4-fs error (device nvme0n1p1): ext4_lookup:1855: inode #2: iget: checksum invalid", ke.FILES, "nvme0n1p1"),
    ("EXT4-fs (dm-0): Remounting filesystem read-only", ke.FILES, "dm-0"),
    ("XFS (nvme0n1): Metadata corruption detected at xfs_agf_read_verify", ke.FILES, "nvme0n1"),
    ("BTRFS error (device nvme0n1): bad tree block start", ke.FILES, "nvme0n1"),
    ("EXT4-fs warning (device dm-0): ext4_end_bio:343: I/O error 10 writing to inode 12", ke.FILES, "dm-0"),
    ("Buffer I/O error on device dm-0, logical block 17", ke.STORAGE, "dm-0"),
    ("sd 0:0:0:0: [sda] tag#7 FAILED Result: hostbyte=DID_BAD_TARGET driverbyte=DRIVER_OK", ke.STORAGE, "sda"),
    ("ata1.00: disabled", ke.STORAGE, "ata1"),
    ("device-mapper: integrity: dm-0: Checksum failed at sector 0x22f4", ke.STORAGE, ""),
    ("WARNING: Pool 'tank' has encountered an uncorrectable I/O failure and has been suspended.", ke.STORAGE, ""),
    ("NVRM: GPU 0000:c1:00.0: rm_init_adapter failed, device minor number 0", ke.DRIVER, "0000:c1:00"),
    ("AMD-Vi: Completion-Wait loop timed out", ke.IOMMU, ""),
    ("NMI: IOCK error (debug interrupt?) for reason 61 on CPU 0.", ke.MACHINE_CHECK, ""),
    ("mce: Uncorrected hardware memory error in user-access at 7f00", ke.MACHINE_CHECK, ""),
    ("Memory failure: 0x3ff: Killing vllm:4711 due to hardware memory corruption", ke.MACHINE_CHECK, ""),
    ("nvme 0000:c1:00.0: Unable to change power state from D3cold to D0, device inaccessible", ke.UNPLUGGED, GPU),
    ("ixgbe 0000:42:00.0 eno1: NIC Link is Down", ke.LINK, "eno1"),
    ("igb 0000:03:00.0 enp3s0: igb: enp3s0 NIC Link is Down", ke.LINK, "enp3s0"),
    ("mlx5_core 0000:81:00.0 ens1np0: Link down", ke.LINK, "ens1np0"),
    ("NVRM: GPU 0000:c1:00.0: RmInitAdapter failed! (0x62:0x40:2477)", ke.DRIVER, "0000:c1:00"),
    ("pcieport 0000:c0:01.1: DPC: containment event, status:0x1f01 source:0x0000", ke.UNCORRECTED, "0000:c0:01.1"),
    ("CPU5: Package temperature above threshold, cpu clock throttled (total events = 1)", ke.SLOWED, ""),
    ("aer_ratelimit: 12 callbacks suppressed", ke.CUT, ""),
    ("Missed 3 kernel messages", ke.CUT, ""),
    ("NVRM: Xid (PCI:0000:C1:00): 79, pid=1", "Xid 79", GPU),
    ("NVRM: Xid: 999, whatever", "Xid", ""),
]  # fmt: skip
NOTHING = [
    "Linux version 6.8.0", "pcieport 0000:c0:01.1: AER: enabled with IRQ 36", "mce: CPU supports 32 MCE banks",
    "EXT4-fs (nvme0n1p1): mounted filesystem with ordered data mode", "ixgbe 0000:42:00.0 eno1: NIC Link is Up 10 Gbps",
    "EDAC MC0: Giving out device to module skx_edac", "nvme nvme0: 32/0/0 default/read/poll queues", "",
    "ata1: SATA link up 6.0 Gbps (SStatus 133 SControl 300)", "NVRM: loading NVIDIA UNIX Open Kernel Module",
    "XFS (nvme0n1): Mounting V5 Filesystem", "Command line: BOOT_IMAGE=/vmlinuz panic=10 nmi_watchdog=1",
    "EXT4-fs (sdb1): mounted filesystem with ordered data mode. Opts: errors=remount-ro. Quota mode: none.",
    "EXT4-fs (sda1): error count since last fsck: 3", "I/O error, dev sr0, sector 0 op 0x0:(READ)",
    "blk_update_request: I/O error, dev fd0, sector 0", "I/O error, dev loop3, sector 8",
    "traps: gnome-shell[4711] general protection fault ip:7f12 sp:7ffe error:0 in libc.so.6",
    "app[4711]: segfault at 0 ip 000055 sp 00007f error 4 in app", "journald: vacuuming done",
    "Buffer I/O error on device sr0, logical block 1", "ata1.00: configured for UDMA/133", "Memory: 527G available",
    "sd 0:0:0:0: [sda] tag#7 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_OK",
    "device-mapper: uevent: version 1.0.3",
    "perf: interrupt took too long (2503 > 2500)", "ata2: SATA link down (SStatus 0 SControl 300)",
]  # fmt: skip


def found(*lines):
    """Return kind and place of the events of these messages, a second apart."""
    return [(e.kind, e.where) for e in ke.events(Record(n * 2_000_000, 6, line) for n, line in enumerate(lines))]


@pytest.mark.parametrize(("line", "kind", "where"), KNOWN)
def test_a_known_event_is_one_event(line, kind, where):
    """Each message is one event of its kind, where it says that it happened."""
    assert found(line) == [(kind, where)]


@pytest.mark.parametrize("line", NOTHING)
def test_what_a_healthy_machine_says_is_no_event(line):
    """Messages of a boot and of ordinary work are none."""
    assert found(line) == []


def test_a_device_that_the_record_names_is_where_it_happened():
    """Where the words name no place, the device of the record is it."""
    (event,) = ke.events([Record(1, 3, "[Hardware Error]: event severity: corrected", "0000:c1:00.0")])
    assert event.where == GPU


@pytest.mark.parametrize("lines", [CORRECTED_4X, CORRECTED_5X, CORRECTED_68], ids=["4.x", "5.x", "6.8"])
def test_a_pcie_error_counts_once_though_several_lines_tell_of_it(lines):
    """Header and detail lines of one moment are one error; each header is one."""
    seen = list(ke.events(Record(7, 4, line, "") for line in lines))
    headers = sum("received" in line for line in lines)
    assert [(event.kind, event.where) for event in seen] == [(ke.CORRECTED, GPU)] * headers


def test_a_detail_without_its_header_counts():
    """Where the header was lost, or firmware wrote the line, the detail is the error."""
    assert found(CORRECTED_68[2]) == [(ke.CORRECTED, GPU)]


def test_the_lines_of_one_hardware_error_are_one_event():
    """A corrected error on seven lines is one corrected error; one of them that says worse makes it worse."""
    lines = [
        "mce: [Hardware Error]: Machine check events logged", "[Hardware Error]: Corrected error, no action required.",
        "[Hardware Error]: CPU:0 (17:31:0) MC17_STATUS[-|CE|MiscV|AddrV|-|-|SyndV|CECC|-|-|-]: 0x9c2040000000011b",
        "[Hardware Error]: Error Addr: 0x0000000100b0", "[Hardware Error]: cache level: L3/GEN",
    ]  # fmt: skip
    told = list(ke.events(Record(n * 1000, 4, line) for n, line in enumerate(lines)))
    assert [event.kind for event in told] == [ke.MENDED]
    worse = [*lines, "[Hardware Error]: event severity: fatal"]
    assert [e.kind for e in ke.events(Record(n * 1000, 4, line) for n, line in enumerate(worse))] == [ke.MACHINE_CHECK]
    apart = [Record(n * 2_000_000, 4, line) for n, line in enumerate(lines[1:3])]
    assert [event.kind for event in ke.events(apart)] == [ke.MENDED, ke.MENDED]


MCE = "mce: [Hardware Error]: Machine check events logged"


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0", [ke.MEMORY]),
        ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#0_DIMM#0", [ke.MEMORY, ke.MACHINE_CHECK]),
        ("EDAC skx MC0: HANDLING MCE MEMORY ERROR", [ke.MACHINE_CHECK]),
    ],
)
def test_a_machine_check_that_edac_explains_as_corrected_is_a_memory_error(module, kinds):
    """Intel's machines say first that something was logged, and then what it was."""
    assert [e.kind for e in ke.events([Record(0, 4, MCE), Record(400, 4, module)])] == kinds


@pytest.mark.parametrize(("severity", "kind"), [("corrected", ke.CORRECTED), ("recoverable", ke.UNCORRECTED)])
def test_a_pcie_error_that_the_firmware_tells_of_is_one_of_its_device(severity, kind):
    """Where the firmware comes first it writes a record of its own; that is no memory error."""
    lines = [f"event severity: {severity}", "  section_type: PCIe error", "  device_id: 0000:21:00.0"]
    (event,) = ke.events([Record(n, 3, f"{{1}}[Hardware Error]: {line}") for n, line in enumerate(lines)])
    assert (event.kind, event.where) == (kind, "0000:21:00.0")


def test_what_the_firmware_calls_information_is_no_hardware_error():
    """An error record without an error is none that rejects a machine."""
    (event,) = ke.events([Record(0, 6, "{1}[Hardware Error]: event severity: info")])
    assert event.kind == ke.MENDED


def test_novel_warnings_are_grouped_by_what_stays_the_same():
    """Warnings that are no known event count by kind: numbers and addresses do not make another one."""
    lines = [
        Record(1, 4, "foo 0000:c1:00.0: retry 17 at 0xdeadbeef"), Record(2, 3, "foo 0000:41:00.0: retry 18 at 0x0"),
        Record(3, 4, "bar is odd"), Record(4, 6, "only information"), Record(5, 3, KNOWN[0][0]),
    ]  # fmt: skip
    assert dict(ke.novel(lines)) == {"foo #: retry # at #": 2, "bar is odd": 1}


@given(st.lists(st.builds(Record, st.integers(0, 9), st.integers(0, 7), st.text(), st.text(max_size=3)), max_size=5))
def test_any_messages_are_events_or_not(records):
    """Whatever a log says, it is answered; a known event in it is found."""
    seen = list(ke.events([*records, Record(10, 3, "INFO: task x:1 blocked for more than 122 seconds.")]))
    assert ke.HUNG in {event.kind for event in seen}
    assert sum(ke.novel(records).values()) <= len(records)
