"""Trains pi0 and pi0.5 with the flow-matching loss; what comes out is a directory that the daemon serves."""
