"""The doctor: what batch norm layers have recorded, looked at without running them. Knows no framework."""
