"""Parts of one's own for effbackbones: see the guide to plug-ins."""
