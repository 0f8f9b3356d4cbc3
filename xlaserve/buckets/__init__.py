"""Bucket ladders, the graphs they name, compiling them and keeping what was compiled."""
