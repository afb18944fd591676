"""Matrix products of the prefix in float8 (e4m3): which ones, their scales, and what the scales come from.

Weights have a scale for each output column; inputs have one number for each product, found beforehand from
the largest entry that the network shows over observations. The last layer, of which only keys and values
are used, is left out. Shared by all backends that have `fp8`.
"""
