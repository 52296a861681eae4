"""Records in, documents out: terminal tables, figures, HTML and JSON. Knows no framework and imports no door."""
