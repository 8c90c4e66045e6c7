"""Searching strategies and hardware: enumeration, descent, rounding, and the co-designer that joins them."""
