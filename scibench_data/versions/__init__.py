"""Pin versions, and tell how two of them differ."""
