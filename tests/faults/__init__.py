"""Real disks that fail: loop images as root. `make faults` runs them."""
