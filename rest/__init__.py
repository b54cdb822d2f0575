"""What the three tenant REST surfaces share."""
