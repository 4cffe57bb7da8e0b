"""The token cache: frozen towers see each picture and each text once; steps take what is kept (below ``module``)."""
