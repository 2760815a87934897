"""Write a descriptor from files, and say what is wrong with one."""
