"""What ranks tell each other outside of collectives: that they live, and that all should stop."""
