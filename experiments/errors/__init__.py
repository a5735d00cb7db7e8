"""Wrong answers: found, named and left out."""
