"""From files to a Zarr store with a digest, whole or absent."""
