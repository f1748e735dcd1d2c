"""Pictures of what was found: boxes and masks on images, and the letters beside them."""
