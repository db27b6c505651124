"""Screens and files made of the contract's device objects: pure functions, data in, text out."""
