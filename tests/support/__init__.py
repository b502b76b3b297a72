"""Fakes, small models and tools that tests share."""
