"""One seam per engine: each vendor's module is imported in one file here, and its errors are translated there."""
