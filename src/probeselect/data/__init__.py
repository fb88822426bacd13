"""Collected data: shards of whole groups."""
