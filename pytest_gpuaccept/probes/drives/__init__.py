"""The drives: what lies behind a mount, how fast it is, and what a drive keeps count of."""
