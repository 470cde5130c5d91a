"""Studies that ship with jaxprune."""
