"""The image track: networks that name the expression of a face, their data, training and use."""
