"""Measurements: each script compares jaxloss with a peer or a limit in one process, and writes JSON to `results/`."""
