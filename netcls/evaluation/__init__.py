"""Honest numbers: metrics with intervals, baselines on the same flows, and the words that go with them."""
