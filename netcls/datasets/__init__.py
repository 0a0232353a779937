"""Labelled data: captures and labels in, model input with a repeatable split out."""
