"""Time and traffic of single operators on one die, at several fidelities behind one interface."""
