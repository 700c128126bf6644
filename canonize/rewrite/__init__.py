"""The driver, its journal, and what is tidied behind it."""
