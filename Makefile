# What CI checks, in the .venv that is there; .ci/run is where it is defined.
.PHONY: check
check:
	.ci/run check
