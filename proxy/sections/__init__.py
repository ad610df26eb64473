"""The sections of the configuration, each a frozen value that cannot be impossible."""
