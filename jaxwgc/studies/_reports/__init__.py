"""Reports of slow workers, from times or from waiting times."""
