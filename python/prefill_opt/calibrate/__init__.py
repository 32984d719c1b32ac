"""Offline choice of a sparse pattern for every attention head: ``prefill-opt calibrate``.

Measures on a text of the user's, with the generated kernels on this machine, what each
candidate pattern costs in time and in quality, head by head, and writes the JSON that
``-sparsify=config:FILE`` reads. docs/Calibration.md explains the method.
"""
