"""Three models trained on real data with the losses of jaxloss: `python -m demo`."""
