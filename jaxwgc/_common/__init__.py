"""Arrays, pytrees, checks of arguments, small numerics and text, for all rooms."""
