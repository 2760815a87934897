"""What is asked of other machines, and what they may not do."""
