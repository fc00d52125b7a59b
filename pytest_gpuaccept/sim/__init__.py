"""A simulated GPU machine: one physical model on a virtual clock, behind the seam of world.py.

Emits raw bytes, registers and records, and nothing more: it knows no metric, no limit, no verdict.
"""
