"""How the small models of this repository were made."""
