"""A cluster on one machine: hosts, workers with a model that costs nothing, and proxies."""
