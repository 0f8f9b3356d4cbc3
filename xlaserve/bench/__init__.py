"""Benchmarks of the engine, the server and the graphs. Each gives a `Result`: figures with their spread, and everything they depend on."""
