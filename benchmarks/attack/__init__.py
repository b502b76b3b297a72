"""A server under attack: honest viewers, attackers in a process of their own, what is measured."""
