"""What methods are made of: shared networks, searches and options."""
