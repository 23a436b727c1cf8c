"""Independent judges, used by metrics only and never by a method."""
