"""Benchmarks: each runs by itself (`python -m benchmarks.bench_x [--json]`) and ends by itself."""
