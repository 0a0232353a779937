"""From wire to tokens: readers, decode, flow table, representations. Needs numpy and numba, never torch."""
