"""LIBERO as a client of the daemon: procedural assets, a scripted expert, demonstrations, evaluation.

Nothing here is imported by `vlad_client`; the simulator itself is imported late, by
`vlad_libero.simulator.package` only.
"""
