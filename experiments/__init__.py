"""Experiments: parse, wire, run."""
