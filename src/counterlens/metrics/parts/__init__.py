"""What several metrics and the reports share."""
