"""Episodes as LeRobotDataset v3, which training reads."""
