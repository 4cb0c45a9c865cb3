"""A conversation with any model: what is asked, the events that answer, and the backends that give them."""
