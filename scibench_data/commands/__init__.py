"""The command line: what each verb asks, and how answers look."""
