"""Benchmarks: one file per subject, each runs alone and compares with its peer or limit in the same run."""
