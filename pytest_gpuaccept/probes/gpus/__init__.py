"""The GPUs: what they say of themselves, the loads on them, and what went wrong on their links meanwhile."""
