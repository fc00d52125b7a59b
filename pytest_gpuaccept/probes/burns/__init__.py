"""The loads on CPUs and memory, by stress-ng, and the sensors beside them. The burns of the GPUs are in gpus/."""
