"""Video files that are written: under their name when complete, with their provenance, signed."""
