"""The paper's experiments (Hu et al., IEEE Access 2020), one command a table or figure.

    python -m benchmarks.paper table-2 --output runs                          reduced, on synthetic phantoms
    python -m benchmarks.paper table-2 --output runs --chestxray14 DIR        the paper's recipe, on the real images

A run (one network, one seed) is trained once and shared by the tables that hold it; what is done is never done again,
and an interrupted command goes on where it was.
"""
