"""What people look at: pictures and result files."""
