"""Sampling parameters and the on-device sampler."""
