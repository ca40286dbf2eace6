"""`build`: the engines of a package, here, on a host that cannot, and over ssh."""
