"""Lint of lowered graphs: what a compiler that is not here would refuse, said from the graph alone."""
