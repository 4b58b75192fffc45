"""Readers of labelled images: one for folders of images and index masks; other data sets are
brought into that form."""
