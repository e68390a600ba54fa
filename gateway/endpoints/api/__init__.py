"""The control API: one file for each resource, each with its types, its handlers and its rows of the route table."""
