"""A dataset in git and git-annex: built, filled, moved."""
