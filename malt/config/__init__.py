"""Config models: the declaration of a dataset (hashed), and the settings of the machine (never hashed)."""
