"""How fast this machine and this package are: what `jielong bench` and the scripts in benchmarks/ share."""
