"""Ray on one machine, and what its Serve says of the pools."""
