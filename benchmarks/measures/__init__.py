"""One file per further measure, each with `measure(servers, scale)`, which returns its figures."""
