"""Rounds of a partial all-reduce, for any framework."""
