"""Weights from and to the published code of the models that netcls implements."""
