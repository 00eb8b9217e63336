"""Chooses the fastest config whose results stay close to those of float32."""
