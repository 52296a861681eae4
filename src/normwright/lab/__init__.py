"""The claims of the sources as experiments on real data, written against the public names of the doors alone."""
