"""Engines that run the model. Importing this package imports no engine; the registry does, on demand."""
