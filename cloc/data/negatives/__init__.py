"""Hard negative texts made of a data set's own phrases: one thing or attribute exchanged."""
