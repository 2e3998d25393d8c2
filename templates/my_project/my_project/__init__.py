"""A network, data and a norm, for `syncbn train`."""
