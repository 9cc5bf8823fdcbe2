"""One file a version, each after the one it names."""
