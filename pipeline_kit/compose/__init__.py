"""From words and YAML to a checked config, and from that to built stages."""
