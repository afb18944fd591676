"""Whether a backend computes what the float32 reference computes."""
