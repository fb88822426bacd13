"""The probe: what it computes (`network`), how it is stored (`files`), how it learns (`training`)."""
