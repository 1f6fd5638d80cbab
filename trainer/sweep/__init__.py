"""Many trainings, each with a row in a table: here one after another, or on the machines of a Ray cluster."""
