"""What batch normalization is, before any framework: layouts, moments, running statistics, and the words of errors."""
