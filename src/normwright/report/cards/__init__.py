"""One card for each experiment of the laboratory: its words, its verdicts, its pictures, all from its records."""
