"""What conetd costs, beside the floor of the same work and beside its peers, in one run: `make bench`."""
