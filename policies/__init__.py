"""Farebox decides here: values in, values out."""
