"""Compiled inner loops (numba) over columns. Each has a slow, obviously right twin in tests/reference/."""
