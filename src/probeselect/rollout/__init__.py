"""Record and replay: candidates of any pipeline taken to a rung, stopped, and taken on exactly."""
