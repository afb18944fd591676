"""Matrix products of the library: which of cuBLASLt's algorithms computes each of them."""
