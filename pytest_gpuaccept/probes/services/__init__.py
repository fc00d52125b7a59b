"""What is around the machine: monitoring, upkeep, volumes, the board's controller and the electrical plan."""
