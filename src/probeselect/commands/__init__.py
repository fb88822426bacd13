"""The commands of the program, by what they are about. Each reads options, calls the library, writes files."""
