"""The daemon: websocket sessions, health, metrics, and the link to the engine worker. Imports no torch."""
