"""Image files to pixels: decoding, color, resizing, limits."""
