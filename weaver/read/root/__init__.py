"""A decoder of the baskets of ROOT's trees."""
