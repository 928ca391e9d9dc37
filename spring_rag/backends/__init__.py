"""What answers: one small protocol, `base.Backend`, and its implementations."""
