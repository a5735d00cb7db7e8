"""The paper's tables and figures, and benchmarks: `python -m experiments`."""
