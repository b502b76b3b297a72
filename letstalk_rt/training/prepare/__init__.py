"""Turns raw videos into a data folder: `letstalk prepare`."""
