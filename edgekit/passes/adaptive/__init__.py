"""Models that give less depth, less width or fewer experts where that is enough."""
