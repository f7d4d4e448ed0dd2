"""What a version holds, counted."""
