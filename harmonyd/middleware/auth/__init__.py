"""Who asks, and whether they may: middleware for identity."""
