"""A cluster on this machine, hosts being network namespaces: `make lab` to try it, `lab.cluster.Lab` for tests."""
