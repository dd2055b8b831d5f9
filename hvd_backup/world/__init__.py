"""Ranks, nodes and what they share: how a process comes to a world, waits in it, and leaves it."""
