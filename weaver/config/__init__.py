"""Weaver's data config: parsed, checked, evaluated."""
