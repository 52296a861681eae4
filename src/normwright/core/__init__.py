"""What batch normalization is, before any framework: layouts, moments, running statistics, errors' words."""
