"""Benchmarks: ratios in one run, against the raw thing. One object of numbers each; `cwm-rl bench NAME --json`."""
