"""Policies: who of a prompt's candidates goes on, when it is enough, and the search for the best of both."""
