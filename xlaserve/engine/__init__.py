"""Requests, scheduling, the device step, and the Python API."""
