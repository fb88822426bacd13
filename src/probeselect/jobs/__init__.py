"""Jobs: what runs for long. They use everything below and never each other."""
