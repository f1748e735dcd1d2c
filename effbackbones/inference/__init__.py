"""From a model to answers: images that are predicted in tiles."""
