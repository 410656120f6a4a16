"""Pairs to try the project with: a tiny generated one, and a small real model with a synthetic Base."""
