"""One folder a defense; see README.md beside this file for how to add one."""
