"""``python -m scibench_data`` is ``scibench-data``."""

from scibench_data.cli import main

main()
