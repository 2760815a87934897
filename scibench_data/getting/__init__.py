"""From a name and a version to files on this disk that have the published bytes."""
