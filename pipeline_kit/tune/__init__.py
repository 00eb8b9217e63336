"""Choosing the fastest config whose answers stay close enough to float32, by trying them on the user's texts."""
