"""From tokens to labels: networks, learning, checkpoints, predictor. Knows nothing of sockets or capture files."""
