"""How networks learn: pre-training, fine-tuning, calibration. Knows tokens and labels, nothing of captures."""
