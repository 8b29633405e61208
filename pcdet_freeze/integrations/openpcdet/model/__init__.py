"""The frozen detector: its forward, its frozen heads, and another one built like it."""
