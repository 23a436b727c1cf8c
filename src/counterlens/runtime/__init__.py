"""Devices, seeds, atomic files, progress and the training loop: what every stage stands on."""
