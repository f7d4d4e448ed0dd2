"""A version verified, compared and explained."""
