"""Hostile input: what is sent to the server is mutated, and nothing may break.

`benchmarks/fuzz_server.py` runs any number of inputs, `test_fuzz.py` the corpus and a few.
"""
