"""How fast canonize converts, proves and runs, beside other tools, measured: ``python -m benchmarks.speed``."""
