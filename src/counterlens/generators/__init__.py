"""Models that know how images look. Methods may use them; metrics never do."""
