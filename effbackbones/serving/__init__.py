"""A trained model as a service over HTTP: limits, batches, figures, and the web application over them (extra ``serve``)."""
