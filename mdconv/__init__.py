"""MD-Conv networks and their science: layers, networks, data, training and evaluation (needs torch)."""
