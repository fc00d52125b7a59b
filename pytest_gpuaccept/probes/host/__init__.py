"""The machine without load: its parts, its settings, its next start, and what confines a process on it."""
