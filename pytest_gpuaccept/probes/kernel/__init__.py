"""What the kernel shows of errors: its log, its counters, PCIe's AER, Xids, and whether anybody listens."""
