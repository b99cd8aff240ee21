"""Network files in Weaver's form, and the layers and losses that they share."""
