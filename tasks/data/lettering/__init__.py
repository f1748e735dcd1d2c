"""Text as pictures: files of text, fonts that have its letters, how a line looks, the picture of it."""
