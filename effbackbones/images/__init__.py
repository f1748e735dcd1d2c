"""Images: files to pixels, ranges of pixel values, and the geometry of resizing."""
