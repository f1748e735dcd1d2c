"""Files of a data set: reading within its root, image names, JSON and its records."""
