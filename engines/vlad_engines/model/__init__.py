"""pi0 and pi0.5 in plain PyTorch: the reference that every backend is held against."""
