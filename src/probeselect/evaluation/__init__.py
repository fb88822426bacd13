"""How well scorers choose, as figures, pictures and a page."""
