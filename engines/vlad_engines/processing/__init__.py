"""Observation to model inputs, model outputs to robot actions. numpy, Pillow and sentencepiece only."""
