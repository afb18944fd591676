"""The schedule of every `_pipelined` backend: one request's vision and prefix beside another's denoising."""
