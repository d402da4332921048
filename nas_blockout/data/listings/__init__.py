"""Image files with their classes and groups: how tables list them, what groups them, how they are divided."""
