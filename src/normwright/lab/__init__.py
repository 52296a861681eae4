"""The paper's experiments on real data, written against the public names of the doors alone."""
