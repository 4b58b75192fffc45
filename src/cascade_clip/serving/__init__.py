"""A model for others: an HTTP service and a web page, and what both share."""
