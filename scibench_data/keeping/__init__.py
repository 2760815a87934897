"""What lies on this disk: shown, verified, cleared away."""
