"""The token cache: frozen towers see each picture and each text once, and steps take what is kept (below ``module``)."""
