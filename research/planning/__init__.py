"""What plans earn on tables of real scores: the figures of docs/planning.md."""
