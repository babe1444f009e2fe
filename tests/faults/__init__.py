"""Tests that kill processes, cut connections and stop servers."""
