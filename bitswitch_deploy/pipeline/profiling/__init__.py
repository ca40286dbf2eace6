"""`profile`: how fast every width of a package is, here and over ssh."""
