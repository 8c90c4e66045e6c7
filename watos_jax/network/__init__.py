"""Networks: fabrics, routes, collectives, and what they make of a strategy."""
