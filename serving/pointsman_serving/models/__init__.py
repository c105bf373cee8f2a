"""Model folders: where they live, and the ones that this package can make itself."""
