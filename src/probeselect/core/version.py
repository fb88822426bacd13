"""The one place where the version stands; pyproject.toml reads it here."""

VERSION = "0.1.0"
