"""What the kernels are built of: Triton itself, loaded when it is needed, random bits, and sums over programs."""
