"""A library of prompts."""
