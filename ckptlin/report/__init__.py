"""Figures of a store."""
