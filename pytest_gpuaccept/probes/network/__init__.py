"""The network: the ports below an interface, and how its link fared during the run."""
