"""Which bits where: costs, resources, an exact solver, and a choice among its candidates by inference only."""
