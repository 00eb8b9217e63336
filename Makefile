# What CI checks, in the .venv that is there, and what it runs every night; .ci/run is where both are defined.
.PHONY: check storms
check storms:
	.ci/run $@
