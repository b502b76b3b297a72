"""Dubbing: another voice for a film of a person, whose mouth says the new words."""
