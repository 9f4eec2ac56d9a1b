"""Where the built native library lies."""
