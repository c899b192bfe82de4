"""How the small models that ship with lit-dola were trained."""
