"""Benchmarks of throughput, memory and start-up time, compared with other libraries."""
