"""How what is wanted becomes so: jobs that commit the wish, act on the kernel, and record."""
