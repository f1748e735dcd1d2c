"""Reports: the page, its drawings, and the files of scores."""
